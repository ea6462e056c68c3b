#include "storage/io/read_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <stdexcept>

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::IsEmpty;
using ::testing::SizeIs;

/// Byte `offset` of file `file`: any two nearby bytes differ.
uint8_t byte_of(uint32_t file, uint64_t offset) {
  return static_cast<uint8_t>((offset * 31 + offset / 251 + file * 97) & 0xff);
}

/// The slot as the reads of the plan would leave it; `true` marks a byte read.
struct Slot {
  std::vector<uint8_t> bytes;
  std::vector<bool> is_read;
};

Slot carry_out(const ReadPlan& plan) {
  Slot slot{std::vector<uint8_t>(plan.slot_bytes), std::vector<bool>(plan.slot_bytes)};
  for (const PlannedRead& read : plan.reads) {
    for (uint64_t i = 0; i < read.required_bytes; ++i) {
      slot.bytes.at(read.slot_offset + i) = byte_of(read.file, read.offset + i);
      slot.is_read.at(read.slot_offset + i) = true;
    }
  }
  return slot;
}

void expect_placed(const ReadPlan& plan, const std::vector<Extent>& wanted) {
  const Slot slot = carry_out(plan);
  ASSERT_THAT(plan.placements, SizeIs(wanted.size()));
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_EQ(plan.placements[i].bytes, wanted[i].bytes);
    for (uint64_t b = 0; b < wanted[i].bytes; ++b) {
      const uint64_t at = plan.placements[i].slot_offset + b;
      ASSERT_TRUE(slot.is_read.at(at)) << "extent " << i << " byte " << b << " is never read";
      ASSERT_EQ(slot.bytes[at], byte_of(wanted[i].file, wanted[i].offset + b));
    }
  }
}

void expect_well_formed(const ReadPlan& plan, const std::vector<uint64_t>& file_bytes,
                        const ReadPlanOptions& options) {
  uint64_t slot_end = 0;
  for (const PlannedRead& read : plan.reads) {
    ASSERT_EQ(read.offset % options.alignment, 0u);
    ASSERT_EQ(read.bytes % options.alignment, 0u);
    ASSERT_EQ(read.slot_offset % options.alignment, 0u);
    ASSERT_GT(read.bytes, 0u);
    ASSERT_LE(read.bytes, options.max_read_bytes);
    ASSERT_GE(read.slot_offset, slot_end) << "reads overlap in the slot";
    ASSERT_GT(read.required_bytes, 0u);
    ASSERT_EQ(read.required_bytes, std::min(read.bytes, file_bytes[read.file] - read.offset));
    slot_end = read.slot_offset + read.bytes;
  }
  ASSERT_EQ(plan.slot_bytes, slot_end);
  ASSERT_EQ(plan.slot_bytes % options.alignment, 0u);
}

void expect_no_block_read_twice(const ReadPlan& plan) {
  for (const PlannedRead& a : plan.reads) {
    for (const PlannedRead& b : plan.reads) {
      if (&a == &b || a.file != b.file) continue;
      ASSERT_TRUE(a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset);
    }
  }
}

TEST(ReadPlan, RandomExtentsLieWhereTheirPlacementsSay) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    const auto below = [&](uint64_t bound) { return random() % bound; };
    std::vector<uint64_t> file_bytes(1 + below(3));
    for (uint64_t& bytes : file_bytes) bytes = below(20'000);
    const uint32_t alignment = std::vector<uint32_t>{1, 512, 4096, 48}[below(4)];
    const ReadPlanOptions options{.alignment = alignment,
                                  .max_read_bytes = alignment + below(8000),
                                  .max_gap_bytes = below(3) * below(3000)};
    std::vector<Extent> wanted(below(20));
    for (Extent& extent : wanted) {
      extent.file = static_cast<uint32_t>(below(file_bytes.size()));
      extent.offset = below(file_bytes[extent.file] + 1);
      extent.bytes = below(std::min<uint64_t>(file_bytes[extent.file] - extent.offset, 4000) + 1);
    }
    const ReadPlan plan = plan_reads(wanted, file_bytes, options);
    expect_well_formed(plan, file_bytes, options);
    expect_no_block_read_twice(plan);
    expect_placed(plan, wanted);
    if (HasFatalFailure()) return;
  }
}

TEST(ReadPlan, NeighboursBecomeOneRead) {
  const std::vector<Extent> wanted{{0, 5000, 100}, {0, 4100, 900}, {0, 9000, 10}};
  const ReadPlan plan = plan_reads(wanted, std::vector<uint64_t>{100'000});
  EXPECT_THAT(plan.reads, SizeIs(1));
  EXPECT_THAT(plan.placements,
              ElementsAre(Field(&Placement::slot_offset, 904), Field(&Placement::slot_offset, 4),
                          Field(&Placement::slot_offset, 4904)));
}

TEST(ReadPlan, GapsBeyondTheLimitAreSkipped) {
  const std::vector<uint64_t> file_bytes{10'000'000};
  const ReadPlanOptions options{.max_gap_bytes = 100'000};
  const std::vector<Extent> near{{0, 0, 4096}, {0, 104'096, 10}};
  const std::vector<Extent> far{{0, 0, 4096}, {0, 104'097, 10}};
  EXPECT_THAT(plan_reads(near, file_bytes, options).reads, SizeIs(1));
  EXPECT_THAT(plan_reads(far, file_bytes, options).reads, SizeIs(2));
}

TEST(ReadPlan, OnlyTheTailOfAFileRequiresLessThanItReads) {
  const std::vector<Extent> wanted{{0, 0, 10'000}};
  const ReadPlan plan = plan_reads(wanted, std::vector<uint64_t>{10'000}, {.max_read_bytes = 8192});
  ASSERT_THAT(plan.reads, SizeIs(2));
  EXPECT_EQ(plan.reads[0].required_bytes, 8192u);
  EXPECT_EQ(plan.reads[1].bytes, 4096u);
  EXPECT_EQ(plan.reads[1].required_bytes, 1808u);
}

TEST(ReadPlan, EmptyExtentsAreNotRead) {
  const std::vector<Extent> wanted{{0, 7, 0}, {0, 100, 0}};
  const ReadPlan plan = plan_reads(wanted, std::vector<uint64_t>{100});
  EXPECT_THAT(plan.reads, IsEmpty());
  EXPECT_THAT(plan.placements, SizeIs(2));
  EXPECT_EQ(plan.slot_bytes, 0u);
}

TEST(ReadPlan, ExtentsOutsideTheirFileAreRefused) {
  const std::vector<uint64_t> file_bytes{100};
  for (const Extent& bad : {Extent{0, 50, 51}, Extent{0, 101, 0}, Extent{1, 0, 1},
                            Extent{0, 1, ~uint64_t{0}}, Extent{0, ~uint64_t{0}, 2}}) {
    EXPECT_THROW(plan_reads(std::vector<Extent>{bad}, file_bytes), std::invalid_argument);
  }
}

TEST(ReadPlan, ReadsSmallerThanTheAlignmentAreRefused) {
  EXPECT_THROW(plan_reads({}, {}, {.alignment = 4096, .max_read_bytes = 4095}),
               std::invalid_argument);
  EXPECT_THROW(plan_reads({}, {}, {.alignment = 0}), std::invalid_argument);
}

TEST(ReadPlan, SplitReadsAreTheSameBytesInPieces) {
  const std::vector<uint64_t> files = {100'000};
  const std::vector<Extent> wanted = {{0, 5'000, 60'000}, {0, 90'000, 10'000}};
  ReadPlan plan = plan_reads(wanted, files, {.max_gap_bytes = 0});
  const ReadPlan whole = plan;
  split_reads(plan, 8192);
  EXPECT_EQ(plan.slot_bytes, whole.slot_bytes);
  size_t piece = 0;
  for (const PlannedRead& read : whole.reads) {
    uint64_t bytes = 0, required = 0;
    for (; bytes < read.bytes; ++piece) {
      const PlannedRead& part = plan.reads.at(piece);
      EXPECT_EQ(part.file, read.file);
      EXPECT_EQ(part.offset, read.offset + bytes);
      EXPECT_EQ(part.slot_offset, read.slot_offset + bytes);
      EXPECT_LE(part.bytes, 8192u);
      EXPECT_GT(part.required_bytes, 0u);
      bytes += part.bytes;
      required += part.required_bytes;
    }
    EXPECT_EQ(bytes, read.bytes);
    EXPECT_EQ(required, read.required_bytes);
  }
  EXPECT_EQ(piece, plan.reads.size());
  EXPECT_THROW(split_reads(plan, 0), std::invalid_argument);
}

TEST(ReadPlan, PackedExtentsAreAlignedAndEveryByteOfThemComesFromOneSlab) {
  const std::vector<uint64_t> files = {200'000};
  // As a file has them: at 8 modulo 16, one of an odd size, one that is empty, out of order.
  const std::vector<Extent> wanted = {
      {0, 90'008, 40'001}, {0, 5'000, 60'000}, {0, 4'000, 0}, {0, 130'009, 7}};
  ReadPlan plan = plan_reads(wanted, files, {.max_gap_bytes = 0});
  split_reads(plan, 8192);
  const ReadPlan unpacked = plan;
  const std::vector<Move> moves = pack(plan, 16);
  std::vector<int> source(unpacked.slot_bytes, -1), slot(plan.slot_bytes, -1);
  for (size_t i = 0; i < wanted.size(); ++i) {
    EXPECT_EQ(plan.placements[i].slot_offset % 16, 0u);
    EXPECT_EQ(plan.placements[i].bytes, wanted[i].bytes);
    for (uint64_t at = 0; at < wanted[i].bytes; ++at) {
      source[unpacked.placements[i].slot_offset + at] = int(wanted[i].offset + at);
    }
  }
  for (const SlabRange& range : cut_into_slabs(plan, 20'000)) {
    const uint64_t base = plan.reads[range.first].slot_offset;
    for (const Move& move : moves_of(plan, range, moves)) {
      ASSERT_LE(move.from + move.bytes, range.bytes);
      for (uint64_t at = 0; at < move.bytes; ++at) {
        EXPECT_EQ(slot.at(move.to + at), -1) << "moved twice";
        slot[move.to + at] = source.at(base + move.from + at);
      }
    }
  }
  for (size_t i = 0; i < wanted.size(); ++i) {
    for (uint64_t at = 0; at < wanted[i].bytes; ++at) {
      ASSERT_EQ(slot.at(plan.placements[i].slot_offset + at), int(wanted[i].offset + at));
    }
  }
  EXPECT_LE(plan.slot_bytes, unpacked.slot_bytes);
  EXPECT_THROW(pack(plan, 0), std::invalid_argument);
}

TEST(ReadPlan, SlabsCoverEveryReadOnceAndStayWithinTheirBytes) {
  for (uint32_t seed = 0; seed < 100; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937_64 random(seed);
    ReadPlan plan;
    for (uint64_t n = random() % 30; n > 0; --n) {
      plan.reads.push_back({.bytes = 1 + random() % 100, .slot_offset = plan.slot_bytes});
      plan.slot_bytes += plan.reads.back().bytes;
    }
    const uint64_t slab_bytes = 1 + random() % 250;
    uint32_t next = 0;
    for (const SlabRange& slab : cut_into_slabs(plan, slab_bytes)) {
      ASSERT_EQ(slab.first, next);
      ASSERT_LT(slab.first, slab.last);
      uint64_t bytes = 0;
      for (uint32_t i = slab.first; i < slab.last; ++i) bytes += plan.reads.at(i).bytes;
      ASSERT_EQ(slab.bytes, bytes);
      ASSERT_TRUE(bytes <= slab_bytes || slab.last - slab.first == 1);
      const bool next_would_fit =
          slab.last < plan.reads.size() && bytes + plan.reads[slab.last].bytes <= slab_bytes;
      ASSERT_FALSE(next_would_fit) << "a slab ends early";
      next = slab.last;
    }
    ASSERT_EQ(next, plan.reads.size());
  }
}

}  // namespace
}  // namespace coppice
