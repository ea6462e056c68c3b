// SparseGPT: prunes column by column, and lets the columns behind make up for what went.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "stages/prune_options.h"

namespace coppice {

/// U of H⁻¹ = Uᵀ U, upper triangular, for H = gram with dead columns (diagonal 0) set to 1 there,
/// plus damping · mean(diagonal of H) · I. gram [in, in] fp32, symmetric → [in, in] fp32, a new
/// tensor. Nothing if H is not positive definite (or not finite) in fp32.
std::optional<at::Tensor> inverse_factor(const at::Tensor& gram, double damping);

/// What a sweep over the columns made of one weight.
struct SweptWeight {
  at::Tensor mask;    // bool [out, in]: true is kept
  at::Tensor weight;  // fp32 [out, in]: 0 where pruned
};

/// From left to right in lazy blocks of `block_size` columns (rounded down to whole N:M groups; at
/// most kMaxSweepColumns):
/// scores W_ij² / U_jj², prunes num_pruned(sparsity, out · columns) of each block, or chooses N of
/// M as the sweep reaches a group, and adds each column's error to the columns behind it.
/// weight [out, in], any float type; dead columns of it count as 0 and go first. factor as above.
/// Source: Frantar & Alistarh, "SparseGPT", arXiv:2301.00774, algorithm 1.
SweptWeight sweep_columns(const at::Tensor& weight, const at::Tensor& dead,
                          const at::Tensor& factor, double sparsity, const SparsityPattern& pattern,
                          int64_t block_size = 128);

/// FLOP of inverse_factor and of sweep_columns.
double inverse_factor_flop(int64_t in);
double sweep_flop(int64_t out, int64_t in);

}  // namespace coppice
