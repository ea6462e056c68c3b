// Operations whose derivative is known better than by composing ATen's: nodes of the autograd
// graph.
#pragma once

#include <ATen/core/Tensor.h>

#include "stages/model/block_weights.h"
#include "stages/model/rotary.h"

namespace coppice::differentiable {

/// y = normed Wᵀ + b for normed = gain ∘ x̂ + shift [tokens, in], which the caller computes once for
/// all linears reading it; `norm.bias`, the shift, and `linear.bias` may be undefined. Gradients
/// flow to weight, bias, gain, shift and x̂, each only where it is required; `normed` itself gets
/// none. The gain's is Σ_i W_ij (Gᵀ x̂)_ij, so that no product beyond the weight's own is needed.
at::Tensor normed_linear(const at::Tensor& x_hat, const at::Tensor& normed, const Norm& norm,
                         const Linear& linear);

/// See stages/ops/rms_normalize.h.
at::Tensor rms_normalize(const at::Tensor& x, double epsilon);

/// See stages/ops/gated_silu.h.
at::Tensor gated_silu(const at::Tensor& gate, const at::Tensor& up);

/// See stages/ops/rotate_halves.h. The tables get no gradient.
at::Tensor rotate_halves(const at::Tensor& x, const RotaryTable& table);

}  // namespace coppice::differentiable
