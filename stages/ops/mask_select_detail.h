// What each device implements of mask_select.h. Arguments have been checked: scores are contiguous
// fp32, `keep` is contiguous bool of the same shape and device, counts are in range.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stages/ops/gpu_team.h"

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

/// Whether score `i` of a group stays when its `count` smallest go: the one rule of N:M, wherever a
/// group is chosen. Of equal scores the lower columns go first.
COPPICE_KERNEL bool is_kept_in_group(const float* scores, int i, int group_size, int count) {
  int rank = 0;  // scores pruned before this one
  for (int j = 0; j < i; ++j) rank += scores[j] <= scores[i];
  for (int j = i + 1; j < group_size; ++j) rank += scores[j] < scores[i];
  return rank >= count;
}

constexpr int kMaxGroupSize = 64;

/// Throws what keep_mask_n_of_m promises for a pattern that is none, or does not fit `columns`.
void require_groups(int num_kept, int group_size, int64_t columns);

}  // namespace coppice::detail
