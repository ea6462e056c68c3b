// Wanda: weights times the norm of what they multiply.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

/// Scores every weight by |W_ij| · ‖X_j‖₂; the smallest are pruned first, dead columns (norm 0)
/// before all.
/// weight       [out, in]   any float type
/// column_norm  [in]        fp32, L2 over all calibration tokens
/// returns      [out, in]   fp32, on the device of `weight`
/// Throws std::invalid_argument if the last dimensions differ.
/// Source: Sun et al., "A Simple and Effective Pruning Approach for LLMs", arXiv:2306.11695, eq. 1.
at::Tensor wanda_score(const at::Tensor& weight, const at::Tensor& column_norm);

/// Throws std::invalid_argument, naming the score, unless column_norm is fp32 [in] of `weight`.
void require_column_norm(const char* score, const at::Tensor& weight,
                         const at::Tensor& column_norm);

}  // namespace coppice
