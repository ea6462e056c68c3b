// The GPU's side of mask_select.h. A team takes a row, many teams a matrix. The cut is found digit
// by digit from the top of a key that ascends with the score; ties are pruned from the lowest
// column. Only integers are counted, so the bits are those of the CPU.
#pragma once

#include <cstdint>

#include "stages/ops/gpu_team.h"
#include "stages/ops/mask_select_detail.h"  // the rule of a group

namespace coppice::gpu {

constexpr int kMaskThreads = 1024;  // of a team, at most
constexpr int kDigitBits = 8;
constexpr int kDigitValues = 1 << kDigitBits;
constexpr int kDigits = 32 / kDigitBits;  // of a key

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

/// Of a team.
struct MaskShared {
  unsigned histogram[kDigitValues];
  Cut cut;
  unsigned num_ties;
  bool ties[kMaskThreads];
};

/// Adds the cut's digit at `shift`, given how often each value of it occurs among the keys that
/// begin with the digits above.
COPPICE_KERNEL Cut with_digit(Cut cut, const unsigned* histogram, int shift) {
  unsigned value = 0;
  while (histogram[value] < cut.num_ties) cut.num_ties -= histogram[value++];
  cut.key |= value << shift;
  return cut;
}

/// Counts the digit at `shift` of those of n keys that begin with the digits of `prefix` above it.
/// Called by the whole team; the histogram is complete after the next barrier.
template <typename Team>
COPPICE_KERNEL void count_digit(const Team& team, MaskShared& shared, const float* scores,
                                int64_t n, uint32_t prefix, int shift) {
  const int above = shift + kDigitBits;  // shifting by 32 is undefined, hence 64 bits
  const uint64_t wanted = uint64_t{prefix} >> above;
  for (int64_t i = team.thread(); i < n; i += team.num_threads()) {
    const uint64_t key = key_of(scores[i]);
    if (key >> above == wanted) {
      team.add(&shared.histogram[(key >> shift) & (kDigitValues - 1)], 1u);
    }
  }
}

template <typename Team>
COPPICE_KERNEL void add_not_finite(const Team& team, const float* scores, int64_t n, Count* sum) {
  Count not_finite = 0;
  for (int64_t i = team.thread(); i < n; i += team.num_threads()) {
    not_finite += !is_finite(scores[i]);
  }
  if (not_finite != 0) team.add(sum, not_finite);
}

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
COPPICE_KERNEL Cut cut_of(const Team& team, MaskShared& shared, const MaskRows& task,
                          const float* scores) {
  if (team.thread() == 0) shared.cut = {0, task.count};
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = team.thread(); i < kDigitValues; i += team.num_threads()) shared.histogram[i] = 0;
    team.sync();  // the histogram is empty, the cut is written
    count_digit(team, shared, scores, task.columns, shared.cut.key, shift);
    team.sync();  // the histogram is complete
    if (team.thread() == 0) shared.cut = with_digit(shared.cut, shared.histogram, shift);
    team.sync();  // the cut is written; the histogram may be emptied
  }
  const Cut found = shared.cut;
  team.sync();  // everybody has read the cut: the next row may overwrite it
  return found;
}

/// Whether this thread's tie is among the first `num_wanted` of its chunk. Called by the whole
/// team.
template <typename Team>
COPPICE_KERNEL bool is_early_tie(const Team& team, MaskShared& shared, bool is_tie,
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

/// Walks n scores in chunks of one score a thread, so that ties are met in the order of columns.
/// At most one chunk holds both pruned and kept ties: only there their order is looked at.
template <typename Team>
COPPICE_KERNEL void write_mask(const Team& team, MaskShared& shared, const float* scores, int64_t n,
                               Cut cut, bool* keep) {
  unsigned ties_before = 0;
  for (int64_t first = 0; first < n; first += team.num_threads()) {
    const int64_t i = first + team.thread();
    const bool is_score = i < n;
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
COPPICE_KERNEL void mask_rows(const Team& team, MaskShared& shared, const MaskRows& task) {
  for (int64_t row = team.team(); row < task.rows; row += team.num_teams()) {
    const float* scores = task.scores + row * task.columns;
    add_not_finite(team, scores, task.columns, task.num_not_finite);
    const Cut cut = cut_of(team, shared, task, scores);
    write_mask(team, shared, scores, task.columns, cut, task.keep + row * task.columns);
  }
}

/// Prunes the `count` smallest of n scores, and counts those not finite. One launch after the
/// other, each with as many teams: digit 0 to kDigits − 1, ties, mask.
struct MaskMatrix {
  const float* scores;
  int64_t n;
  unsigned count;
  bool* keep;
  Count* num_not_finite;
  unsigned* histograms;  // [kDigits, kDigitValues], zeros before the first launch
  unsigned* ties;        // [teams], zeros: of each team's stretch
};

/// The scores of a team lie side by side, so that ties are met in the order of columns.
struct Stretch {
  int64_t first, size;
};

template <typename Team>
COPPICE_KERNEL Stretch stretch_of(const Team& team, int64_t n) {
  const int64_t size = (n + team.num_teams() - 1) / team.num_teams();
  const int64_t first = size * team.team() < n ? size * team.team() : n;
  return {first, size < n - first ? size : n - first};
}

/// What the launches before tell of the cut: its `num_digits` highest digits. Called by the whole
/// team, which sees it in `shared`.
template <typename Team>
COPPICE_KERNEL void read_cut(const Team& team, MaskShared& shared, const MaskMatrix& task,
                             int num_digits) {
  if (team.thread() == 0) shared.cut = {0, task.count};
  for (int digit = 0; digit < num_digits; ++digit) {
    for (int i = team.thread(); i < kDigitValues; i += team.num_threads()) {
      shared.histogram[i] = task.histograms[digit * kDigitValues + i];
    }
    team.sync();  // the histogram is there
    if (team.thread() == 0) {
      shared.cut = with_digit(shared.cut, shared.histogram, 32 - (digit + 1) * kDigitBits);
    }
    team.sync();  // the cut is written; the histogram may be overwritten
  }
  team.sync();  // also where there was no digit
}

template <typename Team>
COPPICE_KERNEL void count_digit_of_matrix(const Team& team, MaskShared& shared,
                                          const MaskMatrix& task, int digit) {
  const Stretch stretch = stretch_of(team, task.n);
  const float* scores = task.scores + stretch.first;
  if (digit == 0) add_not_finite(team, scores, stretch.size, task.num_not_finite);
  read_cut(team, shared, task, digit);
  for (int i = team.thread(); i < kDigitValues; i += team.num_threads()) shared.histogram[i] = 0;
  team.sync();
  count_digit(team, shared, scores, stretch.size, shared.cut.key, 32 - (digit + 1) * kDigitBits);
  team.sync();
  for (int i = team.thread(); i < kDigitValues; i += team.num_threads()) {
    const unsigned count = shared.histogram[i];
    if (count != 0) team.add(&task.histograms[digit * kDigitValues + i], count);
  }
}

template <typename Team>
COPPICE_KERNEL void count_ties_of_matrix(const Team& team, MaskShared& shared,
                                         const MaskMatrix& task) {
  const Stretch stretch = stretch_of(team, task.n);
  read_cut(team, shared, task, kDigits);
  unsigned ties = 0;
  for (int64_t i = team.thread(); i < stretch.size; i += team.num_threads()) {
    ties += key_of(task.scores[stretch.first + i]) == shared.cut.key;
  }
  if (ties != 0) team.add(&task.ties[team.team()], ties);
}

template <typename Team>
COPPICE_KERNEL void mask_matrix(const Team& team, MaskShared& shared, const MaskMatrix& task) {
  const Stretch stretch = stretch_of(team, task.n);
  read_cut(team, shared, task, kDigits);
  if (team.thread() == 0) shared.num_ties = 0;
  team.sync();
  for (int64_t i = team.thread(); i < team.team(); i += team.num_threads()) {
    if (task.ties[i] != 0) team.add(&shared.num_ties, task.ties[i]);  // before this stretch
  }
  team.sync();
  Cut cut = shared.cut;
  cut.num_ties = cut.num_ties > shared.num_ties ? cut.num_ties - shared.num_ties : 0;
  write_mask(team, shared, task.scores + stretch.first, stretch.size, cut,
             task.keep + stretch.first);
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
