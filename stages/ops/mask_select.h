// Chooses the smallest scores: the one place where a score becomes a mask.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// floor(sparsity · num_scores), where a product that misses an integer by less than 1e-12 of
/// itself is that integer: 0.29 · 100 is 28.999999999999996 in doubles and prunes 29. Throws
/// std::invalid_argument unless 0 ≤ sparsity ≤ 1.
int64_t num_pruned(double sparsity, int64_t num_scores);

/// Prunes exactly num_pruned(sparsity, in), the smallest scores of every row; ties by lower column.
/// scores [out, in] fp32, finite → bool [out, in], true where kept, on the same device; the same
/// bits on every device and with any number of threads. −0 and +0 tie.
/// This and the two below throw std::invalid_argument for another dtype or shape, and
/// NumericalError naming "scores" if a score is NaN or infinite.
at::Tensor keep_mask_by_row(const at::Tensor& scores, double sparsity);

/// Prunes exactly num_pruned(sparsity, out · in), the smallest scores of the matrix; ties by lower
/// (row, column).
at::Tensor keep_mask_by_matrix(const at::Tensor& scores, double sparsity);

/// Keeps the `num_kept` largest of every `group_size` consecutive columns; of equal scores the
/// lower columns are pruned first. Throws std::invalid_argument if group_size does not divide `in`,
/// or unless 0 < num_kept < group_size ≤ 64.
at::Tensor keep_mask_n_of_m(const at::Tensor& scores, int num_kept, int group_size);

}  // namespace coppice
