// Rows divided by their root mean square, and the derivative.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

struct RmsNormalized {
  at::Tensor x_hat;        // shape and dtype of the input
  at::Tensor inverse_rms;  // [tokens], fp32 (fp64 for an fp64 input)
};

/// x̂ = x / √(mean(x²) + epsilon) per row, computed in fp32 and rounded to the dtype of `x`.
/// x [tokens, hidden]. Not part of an autograd graph; see stages/model/differentiable.h.
RmsNormalized rms_normalize_rows(const at::Tensor& x, double epsilon);

/// The gradient with respect to x, given that with respect to x̂: (g − x̂ · mean(g ∘ x̂)) ·
/// inverse_rms.
at::Tensor rms_normalize_rows_backward(const at::Tensor& gradient, const RmsNormalized& output);

}  // namespace coppice
