// The MLP half of a block.
#include <ATen/TensorOperators.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/relu.h>

#include <stdexcept>

#include "stages/model/block_forward.h"
#include "stages/model/differentiable.h"
#include "stages/model/norm.h"

namespace coppice {
namespace {

/// activation(gate) ∘ up
at::Tensor gated(Activation activation, const at::Tensor& gate, const at::Tensor& up) {
  switch (activation) {
    case Activation::kSilu:
      return differentiable::gated_silu(gate, up);
    case Activation::kGelu:
      return at::gelu(gate) * up;
    case Activation::kGeluTanh:
      return at::gelu(gate, "tanh") * up;
    case Activation::kRelu:
      return at::relu(gate) * up;
  }
  throw std::logic_error("an activation without a formula");
}

}  // namespace

at::Tensor mlp_half(const Architecture& architecture, const BlockWeights& weights,
                    const MicroBatch& x, const InputObserver& observe) {
  const std::map<std::string, Linear>& linears = weights.linears;
  const at::Tensor x_hat = rms_normalize(x.hidden, architecture.norm_epsilon);
  at::Tensor normed;
  const std::vector<at::Tensor> gate_up = normed_linears(
      x_hat, weights.norms.at("before_mlp"), {&linears.at("gate"), &linears.at("up")}, &normed);
  if (observe) observe(architecture.linear("gate").input, normed);
  const at::Tensor units = gated(architecture.activation, gate_up[0], gate_up[1]);  // [tokens, ffn]
  if (observe) observe(architecture.linear("down").input, units);
  const Linear down = converted(linears.at("down"), units.scalar_type());
  return at::linear(units, down.weight, down.bias).add_(x.hidden);
}

}  // namespace coppice
