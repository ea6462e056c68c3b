// The inner loop of SparseGPT: prunes columns one after the other, and corrects those behind.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

constexpr int64_t kMaxSweepColumns = 1024;  // of a lazy block: a GPU keeps its rows on the chip

/// For each column j in order: the error of what is pruned is w_j / U_jj, and error · U_jk is taken
/// from every column k > j; pruned weights become 0. Rows are independent.
///
/// weight, errors [out, columns] fp32, contiguous, changed in place (errors are written, 0 where
/// kept); keep [out, columns] bool, false is pruned; factor [columns, columns] fp32, upper
/// triangular, of any strides; all on one device.
///
/// w_k − error · U_jk is rounded once: the same bits on every device and instruction set.
/// Throws std::invalid_argument for more than kMaxSweepColumns columns.
void sweep_columns_(at::Tensor& weight, at::Tensor& errors, const at::Tensor& keep,
                    const at::Tensor& factor);

/// The same, but what is kept is chosen where the sweep is: as it reaches a group, it has corrected
/// the group's weights, and keeps those with the largest scores (w_j / U_jj)², chosen as
/// keep_mask_n_of_m does. Returns bool [out, columns], true where kept: the same bits everywhere.
/// Throws what keep_mask_n_of_m does; after a NumericalError `weight` is garbage.
at::Tensor sweep_groups_(at::Tensor& weight, at::Tensor& errors, const at::Tensor& factor,
                         int num_kept, int group_size);

}  // namespace coppice
