// RIA: how much of its row and of its column a weight is, times what it multiplies.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

/// (|W_ij| / Σ_i |W_ij| + |W_ij| / Σ_j |W_ij|) · ‖X_j‖₂^alpha; a row or column of zeros scores 0.
/// weight       [out, in]   any float type
/// column_norm  [in]        fp32, L2 over all calibration tokens
/// returns      [out, in]   fp32, on the device of `weight`
/// Throws std::invalid_argument if the last dimensions differ.
/// Source: Zhang et al., "Plug-and-Play: An Efficient Post-training Pruning Method for Large
/// Language Models", ICLR 2024, eq. 3 and 4; alpha 0.5 is theirs.
at::Tensor ria_score(const at::Tensor& weight, const at::Tensor& column_norm, double alpha = 0.5);

}  // namespace coppice
