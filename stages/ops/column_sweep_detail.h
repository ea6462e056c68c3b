// What each device implements of column_sweep.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stages/ops/gpu_team.h"

namespace coppice::detail {

/// Rows of a lazy block to be swept, all contiguous. What is kept is given, or chosen in groups: of
/// `given` and `chosen` exactly one is not null.
struct Sweep {
  float* weight;        // [rows, columns]
  float* errors;        // [rows, columns]
  const float* factor;  // [columns, columns]
  const bool* given;    // [rows, columns], or null
  bool* chosen;         // [rows, columns], or null
  int64_t rows;
  int columns;
  int group_size;  // divides `columns`
  int num_pruned;  // of each group
};

/// Each returns how many scores of groups are not finite; if that is not 0, what was written is
/// garbage.
int64_t sweep_cpu(const Sweep& sweep);
int64_t sweep_cuda(const Sweep& sweep, const at::Tensor& weight);

/// What is pruned first goes by this; the same for every device.
COPPICE_KERNEL float sweep_score(float weight, float diagonal) {
  const float ratio = weight / diagonal;
  return ratio * ratio;
}

}  // namespace coppice::detail
