// Root-mean-square normalisation, and the linears that read a normalised input.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "stages/model/block_weights.h"

namespace coppice {

/// x / √(mean(x²) + epsilon) per row, computed in fp32 and rounded to the dtype of `x`; no gain
/// yet. x [tokens, hidden] → the same shape. Differentiable where x requires it: the MLP half of a
/// block window reads what the attention half trains.
at::Tensor rms_normalize(const at::Tensor& x, double epsilon);

/// y_k = (gain ∘ x̂) W_kᵀ + b_k for linears that share one normalised input.
/// x_hat [tokens, in] gets a gradient only where it requires one. A window's first linears do
/// without: nothing upstream is trained, and the gain's gradient falls out of the weights' (Σ_k Σ_i
/// W_ij (G_kᵀ x̂)_ij, with the weights as used). Saves one product in four to five. `observed`, if
/// not null, receives gain ∘ x̂.
std::vector<at::Tensor> normed_linears(const at::Tensor& x_hat, const at::Tensor& gain,
                                       const std::vector<const Linear*>& linears,
                                       at::Tensor* observed = nullptr);

}  // namespace coppice
