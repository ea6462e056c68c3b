// The MLP half of a block.
#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/silu.h>

#include <stdexcept>

#include "stages/model/block_forward.h"
#include "stages/model/differentiable.h"
#include "stages/model/residual.h"

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

}  // namespace

at::Tensor mlp_half(const Architecture& architecture, const BlockWeights& weights,
                    const MicroBatch& x, const InputObserver& observe) {
  static const std::vector<std::string> kGated = {"gate", "up"}, kPlain = {"up"};
  const auto& roles = architecture.mlp_kind == MlpKind::kGated ? kGated : kPlain;
  const FirstLinears first = first_linears(architecture, weights, Half::kMlp, roles, x.hidden);
  if (observe) observe(architecture.first_linear(Half::kMlp).input, first.input);
  const at::Tensor units = units_of(architecture, first.outputs);
  if (observe) observe(architecture.last_linear(Half::kMlp).input, units);
  return back_to_stream(architecture, weights, Half::kMlp, units, x.hidden);
}

}  // namespace coppice
