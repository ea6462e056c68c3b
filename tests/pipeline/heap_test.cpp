// Linked with tcmalloc, as the program is: what limit_heap promises of memory that was freed and of
// memory that is needed.
#include "pipeline/heap.h"

#include <ATen/ops/ones.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>
#include <vector>

#include "pipeline/telemetry/process.h"

namespace coppice {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

at::Tensor ones_of(uint64_t bytes) { return at::ones({int64_t(bytes / 4)}, at::kFloat); }

// Every other one of many small tensors: what lies between is free, and too small for a large one.
std::vector<at::Tensor> every_other_piece(uint64_t bytes) {
  std::vector<at::Tensor> freed(bytes / kMiB / 2), kept(bytes / kMiB / 2);
  for (size_t i = 0; i < kept.size(); ++i) {
    freed[i] = ones_of(kMiB);
    kept[i] = ones_of(kMiB);
  }
  return kept;
}

class Heap : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!knows_its_heap()) GTEST_SKIP() << "another allocator than tcmalloc";
    ones_of(64 * kMiB);  // threads and code that the first tensor brings
    release_free_memory();
  }
};

TEST_F(Heap, FreedMemoryIsGivenBackBeforeTheLimitIsExceeded) {
  const uint64_t limit = resident_bytes() + 300 * kMiB;
  limit_heap(limit, 0);
  const std::vector<at::Tensor> kept = every_other_piece(240 * kMiB);  // half of it is free
  const at::Tensor large = ones_of(150 * kMiB);
  EXPECT_LT(resident_bytes(), limit + 16 * kMiB);
}

TEST_F(Heap, WhatIsFreedIsKeptBelowTheLimit) {
  limit_heap(resident_bytes() + 400 * kMiB, 0);
  const uint64_t before = resident_bytes();
  ones_of(300 * kMiB);
  EXPECT_GT(resident_bytes(), before + 200 * kMiB);
  release_free_memory();
  EXPECT_LT(resident_bytes(), before + 50 * kMiB);
}

TEST_F(Heap, WhatIsStillToBeMappedCounts) {
  const uint64_t limit = resident_bytes() + 400 * kMiB;
  limit_heap(limit, 250 * kMiB);
  const std::vector<at::Tensor> kept = every_other_piece(120 * kMiB);
  const at::Tensor large = ones_of(70 * kMiB);
  EXPECT_LT(resident_bytes(), limit - 250 * kMiB + 16 * kMiB);
}

TEST_F(Heap, MemoryThatIsNeededIsNeverRefused) {
  limit_heap(resident_bytes() + 50 * kMiB, 0);
  std::vector<at::Tensor> needed(8);
  for (at::Tensor& tensor : needed) tensor = ones_of(40 * kMiB);
  const std::vector<char> own(1200 * kMiB, 'x');  // by operator new
  const std::unique_ptr<void, decltype(&std::free)> block(std::malloc(300 * kMiB), std::free);
  ASSERT_NE(block, nullptr);
  EXPECT_EQ(needed.back()[-1].item<float>(), 1);
  EXPECT_EQ(own.back(), 'x');
}

}  // namespace
}  // namespace coppice
