// The GPU's side of mask_select.h. A team takes a row. The cut is found digit by digit from the top
// of a key that ascends with the score; ties are pruned from the lowest column. Only integers are
// counted, so the bits are those of the CPU.
#pragma once

#include <cstdint>

#include "stages/ops/gpu_team.h"
#include "stages/ops/mask_select_detail.h"  // the rule of a group

namespace coppice::gpu {

constexpr int kMaskThreads = 1024;  // of a team, at most
constexpr int kDigitBits = 8;
constexpr int kDigitValues = 1 << kDigitBits;

/// Ascends with the score; −0 and +0 have one key (−0 + 0 is +0).
COPPICE_KERNEL uint32_t key_of(float score) {
  const uint32_t bits = bits_of(score + 0.0f);
  return bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
}

/// The key of the largest score that is pruned, and how many of those equal to it are.
struct Cut {
  uint32_t key;
  unsigned num_ties;
};

struct MaskRowsShared {
  unsigned histogram[kDigitValues];
  Cut cut;
  bool ties[kMaskThreads];
};

/// Prunes the `count` smallest of each row of scores [rows, columns], and counts those not finite.
struct MaskRows {
  const float* scores;
  int64_t rows, columns;
  unsigned count;
  bool* keep;
  Count* num_not_finite;
};

/// Called by the whole team, returns the same to each thread.
template <typename Team>
COPPICE_KERNEL Cut cut_of(const Team& team, MaskRowsShared& shared, const MaskRows& task,
                          const float* scores) {
  const int64_t n = task.columns;
  unsigned not_finite = 0;
  if (team.thread() == 0) shared.cut = {0, task.count};
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = team.thread(); i < kDigitValues; i += team.num_threads()) shared.histogram[i] = 0;
    team.sync();                           // the histogram is empty, the cut is written
    const int above = shift + kDigitBits;  // shifting by 32 is undefined, hence 64 bits
    const uint64_t wanted = uint64_t{shared.cut.key} >> above;
    for (int64_t i = team.thread(); i < n; i += team.num_threads()) {
      const uint64_t key = key_of(scores[i]);
      if (key >> above == wanted) {
        team.add(&shared.histogram[(key >> shift) & (kDigitValues - 1)], 1u);
      }
      if (shift == 0) not_finite += !is_finite(scores[i]);  // once, in the last pass
    }
    team.sync();  // the histogram is complete
    if (team.thread() == 0) {
      Cut cut = shared.cut;
      unsigned value = 0;
      while (shared.histogram[value] < cut.num_ties) cut.num_ties -= shared.histogram[value++];
      cut.key |= value << shift;
      shared.cut = cut;
    }
    team.sync();  // the cut is written; the histogram may be emptied
  }
  if (not_finite != 0) team.add(task.num_not_finite, Count{not_finite});
  const Cut found = shared.cut;
  team.sync();  // everybody has read the cut: the next row may overwrite it
  return found;
}

/// Whether this thread's tie is among the first `num_wanted` of its chunk. Called by the whole
/// team.
template <typename Team>
COPPICE_KERNEL bool is_early_tie(const Team& team, MaskRowsShared& shared, bool is_tie,
                                 unsigned num_wanted) {
  shared.ties[team.thread()] = is_tie;
  team.sync();
  unsigned before = 0;
  if (is_tie) {
    for (int i = 0; i < team.thread(); ++i) before += shared.ties[i];
  }
  team.sync();
  return is_tie && before < num_wanted;
}

/// Walks the row in chunks of one score a thread, so that ties are met in the order of columns.
/// At most one chunk holds both pruned and kept ties: only there their order is looked at.
template <typename Team>
COPPICE_KERNEL void write_mask(const Team& team, MaskRowsShared& shared, const MaskRows& task,
                               const float* scores, Cut cut, bool* keep) {
  unsigned ties_before = 0;
  for (int64_t first = 0; first < task.columns; first += team.num_threads()) {
    const int64_t i = first + team.thread();
    const bool is_score = i < task.columns;
    const uint32_t key = is_score ? key_of(scores[i]) : 0xffffffffu;
    const bool is_tie = is_score && key == cut.key;
    const auto ties = static_cast<unsigned>(team.sync_count(is_tie));
    const unsigned num_wanted = cut.num_ties > ties_before ? cut.num_ties - ties_before : 0;
    bool prunes_tie = is_tie && num_wanted > 0;
    if (num_wanted > 0 && num_wanted < ties) {
      prunes_tie = is_early_tie(team, shared, is_tie, num_wanted);
    }
    if (is_score) keep[i] = key > cut.key || (is_tie && !prunes_tie);
    ties_before += ties;
  }
}

/// Any number of teams; at most kMaskThreads threads each.
template <typename Team>
COPPICE_KERNEL void mask_rows(const Team& team, MaskRowsShared& shared, const MaskRows& task) {
  for (int64_t row = team.team(); row < task.rows; row += team.num_teams()) {
    const float* scores = task.scores + row * task.columns;
    const Cut cut = cut_of(team, shared, task, scores);
    write_mask(team, shared, task, scores, cut, task.keep + row * task.columns);
  }
}

/// Prunes the `count` smallest of every `group_size` of n scores, and counts those not finite.
struct MaskGroups {
  const float* scores;
  int64_t n;
  int count, group_size;
  bool* keep;
  Count* num_not_finite;
};

/// One score a thread. Any number of teams and threads.
template <typename Team>
COPPICE_KERNEL void mask_groups(const Team& team, const MaskGroups& task) {
  const int64_t stride = team.num_teams() * team.num_threads();
  for (int64_t i = team.team() * team.num_threads() + team.thread(); i < task.n; i += stride) {
    const auto place = static_cast<int>(i % task.group_size);
    task.keep[i] =
        detail::is_kept_in_group(task.scores + (i - place), place, task.group_size, task.count);
    if (!is_finite(task.scores[i])) team.add(task.num_not_finite, Count{1});
  }
}

}  // namespace coppice::gpu
