// Normalisation of rows, and the linears that read a normalised input.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "stages/model/block_weights.h"

namespace coppice {

/// x / √(mean(x²) + epsilon) per row, computed in fp32 and rounded to the dtype of `x`; no gain
/// yet. x [tokens, hidden] → the same shape. Differentiable where x requires it: the MLP half of a
/// block window reads what the attention half trains.
at::Tensor rms_normalize(const at::Tensor& x, double epsilon);

/// x under a norm of the architecture's kind, [rows, size] → the same shape; the norm is converted
/// to the dtype of `x`. Rounded where transformers rounds: after x̂ and after the gain for kRms,
/// once for kLayer. Differentiable in x, gain and bias.
at::Tensor normed(const Architecture& architecture, const Norm& norm, const at::Tensor& x);

/// x under a norm as linears read it, and x̂, which their derivatives want.
struct NormedRows {
  at::Tensor x_hat;  // differentiable in x
  at::Tensor value;  // gain ∘ x̂ (+ bias), outside of any graph
};
NormedRows norm_rows(const Architecture& architecture, const Norm& norm, const at::Tensor& x);

/// y_k = rows.value W_kᵀ + b_k for linears that share one normalised input.
/// x̂ [tokens, in] gets a gradient only where it requires one. A window's first linears do
/// without: nothing upstream is trained, and the gain's gradient falls out of the weights' (Σ_k Σ_i
/// W_ij (G_kᵀ x̂)_ij, with the weights as used). Saves one product in four to five.
std::vector<at::Tensor> normed_linears(const NormedRows& rows, const Norm& norm,
                                       const std::vector<const Linear*>& linears);

}  // namespace coppice
