// The gate of a gated MLP and its derivative, each in one pass.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

/// silu(gate) ∘ up, the factor silu(gate) rounded to the dtype before the product.
/// gate, up [tokens, ffn] of one float dtype → the same shape, dtype and device.
/// Not part of an autograd graph; see stages/model/differentiable.h.
at::Tensor gated_silu(const at::Tensor& gate, const at::Tensor& up);

struct GatedSiluGradients {
  at::Tensor gate;
  at::Tensor up;
};

/// Gradients of gated_silu with respect to its inputs, given that of its output. New tensors.
GatedSiluGradients gated_silu_backward(const at::Tensor& gradient, const at::Tensor& gate,
                                       const at::Tensor& up);

}  // namespace coppice
