// The MLP half of a block: one MLP, or a mixture of experts.
#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/zeros_like.h>

#include <stdexcept>

#include "stages/model/block_forward.h"
#include "stages/model/differentiable.h"
#include "stages/model/residual.h"
#include "stages/model/routing.h"

namespace coppice {
namespace {

at::Tensor activated(Activation activation, const at::Tensor& x) {
  switch (activation) {
    case Activation::kSilu:
      return at::silu(x);
    case Activation::kGelu:
      return at::gelu(x);
    case Activation::kGeluTanh:
      return at::gelu(x, "tanh");
    case Activation::kRelu:
      return at::relu(x);
  }
  throw std::logic_error("an activation without a formula");
}

/// What the last linear reads, [tokens, ffn]: f(gate) ∘ up, or f(up).
at::Tensor units_of(const Architecture& architecture, const std::vector<at::Tensor>& first) {
  const Activation activation = architecture.activation;
  if (architecture.mlp_kind == MlpKind::kPlain) return activated(activation, first[0]);
  if (activation == Activation::kSilu) return differentiable::gated_silu(first[0], first[1]);
  return activated(activation, first[0]) * first[1];
}

/// Of the block's one MLP (expert −1), or of one of its experts: [rows, hidden] → the same.
at::Tensor mlp_output(const Architecture& architecture, const BlockWeights& weights, int expert,
                      const HalfInput& input, const InputObserver& observe) {
  const auto role = [&](const char* part) {
    return expert < 0 ? std::string(part) : role_of_expert(part, expert);
  };
  const auto linear = [&](const char* part) { return &weights.linears.at(role(part)); };
  const auto told = [&](const char* part, const at::Tensor& x) {
    if (observe) observe(architecture.linear(role(part)).input, x);
  };
  told("up", input.rows.value);
  if (expert >= 0 && input.rows.value.size(0) == 0) {  // no product of nothing, and no gradient
    told("down", input.rows.value.new_empty({0, architecture.ffn}));
    return {};
  }
  const at::Tensor units =
      units_of(architecture, architecture.mlp_kind == MlpKind::kGated
                                 ? outputs_of(input, {linear("gate"), linear("up")})
                                 : outputs_of(input, {linear("up")}));
  told("down", units);
  return output_of(*linear("down"), units);
}

/// What the experts of every token make of it, summed in the order of the experts.
at::Tensor mixture_output(const Architecture& architecture, const BlockWeights& weights,
                          const HalfInput& input, const InputObserver& observe) {
  const Linear router{weights.router, {}};
  const Routing routing = route(architecture.experts, outputs_of(input, {&router}).front());
  at::Tensor sum = at::zeros_like(input.rows.value);  // [tokens, hidden]
  const std::vector<HalfInput> inputs = parts_of(input, routing.tokens, routing.counts);
  const std::vector<at::Tensor> tokens = routing.tokens.split_with_sizes(routing.counts);
  const std::vector<at::Tensor> shares = routing.weights.split_with_sizes(routing.counts);
  for (size_t expert = 0; expert < inputs.size(); ++expert) {
    const at::Tensor output =
        mlp_output(architecture, weights, static_cast<int>(expert), inputs[expert], observe);
    if (!output.defined()) continue;  // nothing was routed to it
    const at::Tensor weighted = output * shares[expert];
    sum.index_add_(0, tokens[expert], weighted.to(sum.scalar_type()));
  }
  return sum;
}

}  // namespace

at::Tensor mlp_half(const Architecture& architecture, const BlockWeights& weights,
                    const MicroBatch& x, const InputObserver& observe) {
  const HalfInput input = half_input(architecture, weights, Half::kMlp, x.hidden);
  const at::Tensor output = architecture.experts.count > 0
                                ? mixture_output(architecture, weights, input, observe)
                                : mlp_output(architecture, weights, -1, input, observe);
  return back_to_stream(architecture, weights, Half::kMlp, output, x.hidden);
}

}  // namespace coppice
