// The GPU's side of column_sweep.h. A team takes a row and keeps it in shared memory; its threads
// take the columns that are to be corrected, and meet after every pruned one.
#pragma once

#include <cmath>
#include <cstdint>

#include "stages/ops/column_sweep.h"  // the widest lazy block
#include "stages/ops/column_sweep_detail.h"
#include "stages/ops/gpu_team.h"
#include "stages/ops/mask_select_detail.h"  // the rule of a group

namespace coppice::gpu {

struct SweptRow {
  float weight[kMaxSweepColumns];  // a pruned one stays what it was when the sweep reached it
  float scores[detail::kMaxGroupSize];
  bool keep[kMaxSweepColumns];
};

/// For the group that begins at column `first`. The whole team has corrected it.
template <typename Team>
COPPICE_KERNEL void choose_group(const Team& team, SweptRow& shared, const detail::Sweep& sweep,
                                 int first, Count* num_not_finite) {
  for (int i = team.thread(); i < sweep.group_size; i += team.num_threads()) {
    const int64_t j = first + i;
    shared.scores[i] = detail::sweep_score(shared.weight[j], sweep.factor[j * sweep.columns + j]);
    if (!is_finite(shared.scores[i])) team.add(num_not_finite, Count{1});
  }
  team.sync();  // the scores are written
  for (int i = team.thread(); i < sweep.group_size; i += team.num_threads()) {
    shared.keep[first + i] =
        detail::is_kept_in_group(shared.scores, i, sweep.group_size, sweep.num_pruned);
  }
  team.sync();  // what is kept is known; the scores may be overwritten
}

template <typename Team>
COPPICE_KERNEL void sweep_row(const Team& team, SweptRow& shared, const detail::Sweep& sweep,
                              int64_t row, Count* num_not_finite) {
  const int columns = sweep.columns;
  const int64_t offset = row * columns;
  for (int j = team.thread(); j < columns; j += team.num_threads()) {
    shared.weight[j] = sweep.weight[offset + j];
    if (sweep.given != nullptr) shared.keep[j] = sweep.given[offset + j];
  }
  team.sync();  // the row is there
  for (int j = 0; j < columns; ++j) {
    if (sweep.chosen != nullptr && j % sweep.group_size == 0) {
      choose_group(team, shared, sweep, j, num_not_finite);
    }
    if (shared.keep[j]) continue;  // so do all threads
    const float* factor = sweep.factor + int64_t{j} * columns;
    const float error = shared.weight[j] / factor[j];
    for (int k = j + 1 + team.thread(); k < columns; k += team.num_threads()) {
      shared.weight[k] = fmaf(-error, factor[k], shared.weight[k]);
    }
    team.sync();  // the columns behind are corrected
  }
  for (int j = team.thread(); j < columns; j += team.num_threads()) {
    const bool is_kept = shared.keep[j];
    const float weight = shared.weight[j];
    sweep.errors[offset + j] = is_kept ? 0.0f : weight / sweep.factor[int64_t{j} * columns + j];
    sweep.weight[offset + j] = is_kept ? weight : 0.0f;
    if (sweep.chosen != nullptr) sweep.chosen[offset + j] = is_kept;
  }
  team.sync();  // everybody has walked the row, kept columns without waiting: the next may be
                // loaded
}

/// Any number of teams and threads.
template <typename Team>
COPPICE_KERNEL void sweep_rows(const Team& team, SweptRow& shared, const detail::Sweep& sweep,
                               Count* num_not_finite) {
  for (int64_t row = team.team(); row < sweep.rows; row += team.num_teams()) {
    sweep_row(team, shared, sweep, row, num_not_finite);
  }
}

}  // namespace coppice::gpu
