// What each device implements of mask_select.h. Arguments have been checked: scores are contiguous
// fp32, `keep` is contiguous bool of the same shape and device, counts are in range.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice::detail {

/// Each writes `keep` and returns how many scores are not finite; if that is not 0, `keep` is
/// garbage. Prunes the `count` smallest of every row of scores [rows, columns].
int64_t mask_rows_cpu(const at::Tensor& scores, int64_t count, at::Tensor& keep);
int64_t mask_rows_cuda(const at::Tensor& scores, int64_t count, at::Tensor& keep);

/// Prunes the `count` smallest of all scores.
int64_t mask_matrix_cpu(const at::Tensor& scores, int64_t count, at::Tensor& keep);
int64_t mask_matrix_cuda(const at::Tensor& scores, int64_t count, at::Tensor& keep);

/// Prunes the `count` smallest of every `group_size` consecutive scores.
int64_t mask_groups_cpu(const at::Tensor& scores, int count, int group_size, at::Tensor& keep);
int64_t mask_groups_cuda(const at::Tensor& scores, int count, int group_size, at::Tensor& keep);

}  // namespace coppice::detail
