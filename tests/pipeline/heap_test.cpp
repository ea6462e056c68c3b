// Linked with tcmalloc, as the program is: what limit_heap promises of memory that was freed and of
// memory that is needed.
#include "pipeline/heap.h"

#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <vector>

#include "pipeline/telemetry/process.h"

namespace coppice {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

at::Tensor ones_of(uint64_t bytes) { return at::ones({int64_t(bytes / 4)}, at::kFloat); }

// Many small tensors, freed, leave pages that one large one cannot use.
void leave_pieces(uint64_t bytes) {
  std::vector<at::Tensor> pieces, kept;
  for (uint64_t taken = 0; taken < bytes; taken += kMiB) {
    (taken / kMiB % 2 == 0 ? pieces : kept).push_back(ones_of(kMiB));
  }
}

TEST(Heap, FreedMemoryIsGivenBackBeforeTheLimitIsExceeded) {
  const uint64_t limit = resident_bytes() + 300 * kMiB;
  limit_heap(limit, 0);
  for (int i = 0; i < 3; ++i) {
    leave_pieces(200 * kMiB);
    const at::Tensor large = ones_of(uint64_t(190 + 10 * i) * kMiB);
    EXPECT_LT(resident_bytes(), limit + 8 * kMiB);
  }
}

TEST(Heap, WhatIsFreedIsKeptBelowTheLimit) {
  limit_heap(resident_bytes() + 400 * kMiB, 0);
  const uint64_t before = resident_bytes();
  ones_of(300 * kMiB);
  EXPECT_GT(resident_bytes(), before + 200 * kMiB);
  release_free_memory();
  EXPECT_LT(resident_bytes(), before + 50 * kMiB);
}

TEST(Heap, WhatIsStillToBeMappedCounts) {
  const uint64_t limit = resident_bytes() + 400 * kMiB;
  limit_heap(limit, 250 * kMiB);
  for (int i = 0; i < 3; ++i) {
    leave_pieces(100 * kMiB);
    const at::Tensor large = ones_of(uint64_t(100 + 10 * i) * kMiB);
    EXPECT_LT(resident_bytes(), limit - 250 * kMiB + 8 * kMiB);
  }
}

TEST(Heap, MemoryThatIsNeededIsNeverRefused) {
  limit_heap(resident_bytes() + 50 * kMiB, 0);
  std::vector<at::Tensor> needed;
  for (int i = 0; i < 8; ++i) needed.push_back(ones_of(40 * kMiB));
  std::vector<char> small(100 * kMiB, 'x');
  EXPECT_EQ(needed.back()[-1].item<float>(), 1);
  EXPECT_EQ(small.back(), 'x');
}

}  // namespace
}  // namespace coppice
