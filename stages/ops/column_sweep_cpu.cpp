// The reference. Threads take rows: a row's corrections stay in its cache, and nobody waits between
// columns.
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>

#include "stages/ops/column_sweep_detail.h"
#include "stages/ops/cpu_loops.h"
#include "stages/ops/mask_select_detail.h"  // the rule of a group

namespace coppice::detail {
namespace {

// std::fma is one instruction where the CPU has it, and vectorises; a call of the library where
// not.
COPPICE_INLINE void correct(float* __restrict weight, const float* __restrict factor, float error,
                            int n) {
  for (int k = 0; k < n; ++k) weight[k] = std::fma(-error, factor[k], weight[k]);
}

/// Writes what is kept of the group that begins at column `first` of a row; returns how many scores
/// are not finite.
int64_t choose_group(const Sweep& sweep, const float* weight, int first, bool* keep) {
  std::array<float, kMaxGroupSize> scores;
  int64_t num_not_finite = 0;
  for (int i = 0; i < sweep.group_size; ++i) {
    const int64_t j = first + i;
    scores[i] = sweep_score(weight[j], sweep.factor[j * sweep.columns + j]);
    num_not_finite += !std::isfinite(scores[i]);
  }
  for (int i = 0; i < sweep.group_size; ++i) {
    keep[first + i] = is_kept_in_group(scores.data(), i, sweep.group_size, sweep.num_pruned);
  }
  return num_not_finite;
}

COPPICE_CLONES int64_t sweep_row(const Sweep& sweep, int64_t row) {
  const int columns = sweep.columns;
  float* weight = sweep.weight + row * columns;
  float* errors = sweep.errors + row * columns;
  bool* chosen = sweep.chosen == nullptr ? nullptr : sweep.chosen + row * columns;
  const bool* keep = chosen == nullptr ? sweep.given + row * columns : chosen;
  int64_t num_not_finite = 0;
  for (int j = 0; j < columns; ++j) {
    if (chosen != nullptr && j % sweep.group_size == 0) {
      num_not_finite += choose_group(sweep, weight, j, chosen);
    }
    errors[j] = 0;
    if (keep[j]) continue;
    const float* factor = sweep.factor + int64_t{j} * columns;
    const float error = weight[j] / factor[j];
    errors[j] = error;
    weight[j] = 0;
    correct(weight + j + 1, factor + j + 1, error, columns - j - 1);
  }
  return num_not_finite;
}

}  // namespace

int64_t sweep_cpu(const Sweep& sweep) {
  std::atomic<int64_t> num_not_finite = 0;
  at::parallel_for(0, sweep.rows, /*grain_size=*/8, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) num_not_finite += sweep_row(sweep, row);
  });
  return num_not_finite;
}

}  // namespace coppice::detail
