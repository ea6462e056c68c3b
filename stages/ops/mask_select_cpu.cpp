// The reference: a row's cut is found by nth_element, a matrix's by counting digits (no second copy
// of the scores), a group's by ranking. Scores equal to the cut are pruned from the lowest column.
#include <ATen/Parallel.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <mutex>
#include <numeric>
#include <vector>

#include "stages/ops/mask_select_detail.h"
#include "stages/ops/not_finite_detail.h"

namespace coppice::detail {
namespace {

constexpr int64_t kGrain = 1 << 16;  // scores a thread takes at least

int64_t grain_rows(int64_t columns) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, columns));
}

/// The largest score that is pruned, and how many of those equal to it are.
struct Cut {
  float score = 0;
  int64_t num_ties = 0;
};

/// Of n scores, `count` ≥ 1 to be pruned. `scratch` keeps its memory from row to row.
Cut cut_of(const float* scores, int64_t n, int64_t count, std::vector<float>& scratch) {
  scratch.assign(scores, scores + n);
  const auto last = scratch.begin() + (count - 1);
  std::nth_element(scratch.begin(), last, scratch.end());
  return {*last, std::count(scratch.begin(), last + 1, *last)};
}

/// Returns how many ties it met: `num_ties` less those is what the next stretch has to prune.
int64_t write_mask(const float* scores, int64_t n, Cut cut, bool* keep) {
  int64_t ties = 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool is_tie = scores[i] == cut.score;
    keep[i] = scores[i] > cut.score || (is_tie && ties >= cut.num_ties);
    ties += is_tie;
  }
  return ties;
}

}  // namespace

int64_t mask_rows_cpu(const at::Tensor& scores, int64_t count, at::Tensor& keep) {
  const int64_t rows = scores.size(0), columns = scores.size(1);
  const float* score = scores.const_data_ptr<float>();
  bool* kept = keep.mutable_data_ptr<bool>();
  std::atomic<int64_t> num_not_finite = 0;
  at::parallel_for(0, rows, grain_rows(columns), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch;
    for (int64_t row = begin; row < end; ++row) {
      const float* row_score = score + row * columns;
      bool* row_kept = kept + row * columns;
      if (const int64_t bad = count_not_finite(row_score, columns)) {
        num_not_finite += bad;  // NaN has no order: nth_element must not see it
      } else if (count == 0) {
        std::fill_n(row_kept, columns, true);
      } else {
        write_mask(row_score, columns, cut_of(row_score, columns, count, scratch), row_kept);
      }
    }
  });
  return num_not_finite;
}

int64_t mask_groups_cpu(const at::Tensor& scores, int count, int group_size, at::Tensor& keep) {
  const int64_t num_groups = scores.numel() / group_size;
  const float* score = scores.const_data_ptr<float>();
  bool* kept = keep.mutable_data_ptr<bool>();
  std::atomic<int64_t> num_not_finite = 0;
  at::parallel_for(0, num_groups, grain_rows(group_size), [&](int64_t begin, int64_t end) {
    num_not_finite += count_not_finite(score + begin * group_size, (end - begin) * group_size);
    for (int64_t group = begin; group < end; ++group) {
      const float* s = score + group * group_size;
      for (int i = 0; i < group_size; ++i) {
        kept[group * group_size + i] = is_kept_in_group(s, i, group_size, count);
      }
    }
  });
  return num_not_finite;
}

// ---- a whole matrix -----------------------------------------------------------------------------
namespace {

// Fixed, so that ties are counted over the same stretches whatever the number of threads.
constexpr int64_t kStretch = 1 << 16;

// Keys of 32 bits are looked at from the top in digits of 11, 11 and 10 bits: a table of 2048
// counters stays in the first-level cache.
struct Digit {
  int shift;
  int bits;
};
constexpr std::array<Digit, 3> kDigits = {{{21, 11}, {10, 11}, {0, 10}}};
using Histogram = std::vector<int64_t>;

/// Ascends with the score; −0 and +0 have one key (−0 + 0 is +0).
uint32_t key_of(float score) {
  const auto bits = std::bit_cast<uint32_t>(score + 0.0f);
  return bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
}

float score_of(uint32_t key) {
  return std::bit_cast<float>(key ^ ((key & 0x80000000u) != 0 ? 0x80000000u : 0xffffffffu));
}

/// How often each value of `digit` occurs among the keys that begin with the digits of `prefix`.
Histogram count_digits(const float* scores, int64_t n, uint32_t prefix, Digit digit) {
  const int above = digit.shift + digit.bits;  // shifting by 32 is undefined, hence 64 bits
  const uint64_t wanted = uint64_t{prefix} >> above;
  Histogram total(size_t{1} << digit.bits);
  std::mutex mutex;
  at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    Histogram mine(total.size());
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t key = key_of(scores[i]);
      mine[(key >> digit.shift) & (total.size() - 1)] += key >> above == wanted;
    }
    const std::lock_guard lock(mutex);
    for (size_t value = 0; value < total.size(); ++value) total[value] += mine[value];
  });
  return total;
}

/// Of n scores, `count` ≥ 1 to be pruned: finds the digits of the cut's key from the top.
Cut cut_of_matrix(const float* scores, int64_t n, int64_t count) {
  uint32_t key = 0;
  for (const Digit digit : kDigits) {
    const Histogram histogram = count_digits(scores, n, key, digit);
    uint32_t value = 0;
    while (histogram[value] < count) count -= histogram[value++];
    key |= value << digit.shift;
  }
  return {score_of(key), count};  // what is left to prune when the whole key is known
}

/// How many scores before each stretch equal the cut.
std::vector<int64_t> ties_before(const float* scores, int64_t n, float cut) {
  std::vector<int64_t> ties((n + kStretch - 1) / kStretch + 1);
  at::parallel_for(0, std::ssize(ties) - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t stretch = begin; stretch < end; ++stretch) {
      const int64_t first = stretch * kStretch, last = std::min(n, first + kStretch);
      ties[stretch + 1] = std::count(scores + first, scores + last, cut);
    }
  });
  std::partial_sum(ties.begin(), ties.end(), ties.begin());
  return ties;
}

}  // namespace

int64_t mask_matrix_cpu(const at::Tensor& scores, int64_t count, at::Tensor& keep) {
  const int64_t n = scores.numel();
  const float* score = scores.const_data_ptr<float>();
  bool* kept = keep.mutable_data_ptr<bool>();
  if (const int64_t bad = count_not_finite_cpu(scores)) return bad;
  if (count == 0) {
    std::fill_n(kept, n, true);
    return 0;
  }
  const Cut cut = cut_of_matrix(score, n, count);
  const std::vector<int64_t> ties = ties_before(score, n, cut.score);
  at::parallel_for(0, std::ssize(ties) - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t stretch = begin; stretch < end; ++stretch) {
      const int64_t first = stretch * kStretch, size = std::min(kStretch, n - first);
      write_mask(score + first, size, {cut.score, cut.num_ties - ties[stretch]}, kept + first);
    }
  });
  return 0;
}

}  // namespace coppice::detail
