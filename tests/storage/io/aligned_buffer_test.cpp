#include "storage/io/aligned_buffer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <new>
#include <utility>

namespace coppice {
namespace {

TEST(AlignedBuffer, StartsOnAPageAndIsZero) {
  const AlignedBuffer buffer(10'000);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % static_cast<uintptr_t>(getpagesize()), 0u);
  EXPECT_EQ(buffer.span().size(), 10'000u);
  EXPECT_TRUE(std::ranges::all_of(buffer.span(), [](std::byte b) { return b == std::byte{0}; }));
}

TEST(AlignedBuffer, OfNoBytesHoldsNothing) {
  EXPECT_EQ(AlignedBuffer(0).data(), nullptr);
  EXPECT_TRUE(AlignedBuffer().span().empty());
}

TEST(AlignedBuffer, HugePageSizesAreWritableToTheLastByte) {
  const AlignedBuffer buffer((size_t{4} << 20) + 5);
  buffer.span().back() = std::byte{7};
  EXPECT_EQ(buffer.data()[buffer.bytes() - 1], std::byte{7});
}

TEST(AlignedBuffer, MovingHandsTheMemoryOver) {
  AlignedBuffer first(4096);
  first.data()[0] = std::byte{1};
  AlignedBuffer second(std::move(first));
  EXPECT_EQ(first.data(), nullptr);  // NOLINT: a moved-from buffer is empty by contract
  AlignedBuffer third(8192);
  third = std::move(second);
  EXPECT_EQ(second.bytes(), 0u);  // NOLINT
  EXPECT_EQ(third.bytes(), 4096u);
  EXPECT_EQ(third.data()[0], std::byte{1});
}

TEST(AlignedBuffer, ImpossibleSizesAreBadAlloc) {
  EXPECT_THROW(AlignedBuffer(std::numeric_limits<size_t>::max() / 2), std::bad_alloc);
}

}  // namespace
}  // namespace coppice
