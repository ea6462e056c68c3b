#include "stages/ops/gated_silu.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>

#include <stdexcept>

#include "stages/ops/fused_on_cpu.h"
#include "stages/ops/gated_silu_detail.h"

namespace coppice {

at::Tensor gated_silu(const at::Tensor& gate, const at::Tensor& up) {
  if (gate.sizes() != up.sizes()) {
    throw std::invalid_argument("gated_silu: gate and up differ in shape");
  }
  if (!fused_on_cpu({gate, up})) return at::silu(gate).mul_(up);
  at::Tensor product = at::empty_like(gate);
  detail::gated_silu_cpu(gate, up, product);
  return product;
}

GatedSiluGradients gated_silu_backward(const at::Tensor& gradient, const at::Tensor& gate,
                                       const at::Tensor& up) {
  if (!fused_on_cpu({gradient, gate, up})) {
    return {at::silu_backward(gradient * up, gate), at::silu(gate).mul_(gradient)};
  }
  GatedSiluGradients gradients{at::empty_like(gate), at::empty_like(up)};
  detail::gated_silu_backward_cpu(gradient, gate, up, gradients.gate, gradients.up);
  return gradients;
}

}  // namespace coppice
