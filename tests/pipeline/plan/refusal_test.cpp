// What a refused run is told is what it has to grant: not less, and not much more.
#include "pipeline/plan/refusal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <regex>

#include "tests/pipeline/plan/played_plan.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ContainsRegex;
using ::testing::HasSubstr;
using testing::kMiB;
using testing::kPlenty;
using ::testing::Not;
using testing::refusal;

/// Of RAM, said behind `words`; nothing where they are not.
std::optional<uint64_t> ram_said(const std::string& text, const std::string& words) {
  std::smatch said;
  if (!std::regex_search(text, said, std::regex(words + R"( into ([\d.]+) ([MG])iB of RAM)"))) {
    return std::nullopt;
  }
  return uint64_t(std::stod(said[1]) * double(said[2] == "M" ? kMiB : 1024 * kMiB));
}

class RefusalTest : public testing::PlayedPlan {
 protected:
  RefusalTest() { architecture_.num_blocks = 8; }
  PlanInputs with_little_ram(PlanInputs in) {
    in.ram_limit = 100 * kMiB;
    in.is_ram_limit_given = true;
    return in;
  }
  /// The same run by that window, a span of one block.
  PlanInputs by(WindowKind kind, PlanInputs in) {
    in.recipes.front().reconstruct.window = {kind};
    in.slot_bytes = in.block_slot_bytes = in.image_bytes = 135 * kMiB;
    return in;
  }
  static RunPlan refused(const PlanInputs& in) {
    try {
      plan_run(in);
    } catch (const PlanRefused& error) {
      return error.smallest();
    }
    ADD_FAILURE() << "nothing was refused";
    return {};
  }
};

TEST_F(RefusalTest, ListsItemsAndWhatWouldFit) {
  EXPECT_THAT(refusal(with_little_ram(inputs())),
              AllOf(HasSubstr("RAM: "), HasSubstr("100 MiB given by --ram-budget"),
                    HasSubstr("work of the largest stage"), HasSubstr("blocks read ahead"),
                    HasSubstr("It would fit into"), HasSubstr("with --window none into")));
}

TEST_F(RefusalTest, AFullDiskIsToldByName) {
  PlanInputs in = inputs();
  in.output_limit = kMiB;
  EXPECT_THAT(refusal(in), AllOf(HasSubstr("disk for the output"), HasSubstr("free on /output")));
  in = inputs();
  in.scratch_limit = kMiB;
  EXPECT_THAT(refusal(in),
              AllOf(HasSubstr("disk for hidden states"), HasSubstr("free on /scratch")));
}

TEST_F(RefusalTest, BothMemoriesAreToldWhereBothAreTooSmall) {
  PlanInputs in = with_little_ram(inputs());
  in.is_host = false;
  in.device_limit = kMiB;
  EXPECT_THAT(refusal(in), ContainsRegex("would fit into .* of RAM and .* of device memory"));
  in.ram_limit = kPlenty;
  EXPECT_THAT(refusal(in), ContainsRegex("would fit into [^ ]* [MG]iB of device memory"));
}

TEST_F(RefusalTest, WhatWouldFitIsNotRefusedInAProcessOfSomePagesMore) {
  for (uint64_t step = 0; step < 8; ++step) {  // rounded down where it is not rounded up
    PlanInputs in = with_little_ram(inputs());
    in.process_bytes += step * 13 * kMiB + 12345;
    const std::string text = refusal(in);
    const std::optional<uint64_t> said = ram_said(text, "would fit");
    ASSERT_TRUE(said) << text;
    in.process_bytes += 2 * kMiB;
    EXPECT_NO_THROW(with_ram(in, *said)) << text;
  }
}

TEST_F(RefusalTest, SmallerWindowsFitIntoWhatIsSaid) {
  for (const char* targets : {"auto", "cached", "recomputed"}) {
    recipe_.resources.half_block_targets = targets;
    recipe_.reconstruct.window = {WindowKind::kBlock};
    const PlanInputs in = with_little_ram(inputs());
    const std::string text = refusal(in);
    const auto half = ram_said(text, "--window half-block"), none = ram_said(text, "--window none");
    ASSERT_TRUE(half && none) << text;
    EXPECT_LT(*none, *half);
    EXPECT_LT(*half, *ram_said(text, "would fit"));
    EXPECT_NO_THROW(with_ram(by(WindowKind::kHalfBlock, in), *half)) << targets << text;
    EXPECT_NO_THROW(with_ram(by(WindowKind::kNone, in), *none)) << targets << text;
  }
}

// Rows of the embedding want a slot of a size, whatever a block has.
TEST_F(RefusalTest, ASlotOfSeveralBlocksIsNoMultipleOfOne) {
  recipe_.reconstruct.window = {WindowKind::kBlock, 3};
  PlanInputs in = with_little_ram(inputs());
  in.image_bytes = 3 * 135 * kMiB;
  in.slot_bytes = in.block_slot_bytes = 135 * kMiB;
  const std::string text = refusal(in);
  for (const auto& [kind, flag] :
       {std::pair(WindowKind::kBlock, "--window block"), {WindowKind::kNone, "--window none"}}) {
    const std::optional<uint64_t> said = ram_said(text, flag);
    ASSERT_TRUE(said) << text;
    EXPECT_NO_THROW(with_ram(by(kind, in), *said)) << text;
  }
}

TEST_F(RefusalTest, NoWindowIsOfferedThatLeavesARateNothingToTrain) {
  recipe_.reconstruct.window = {WindowKind::kBlock};
  recipe_.reconstruct.lr = 0;  // auto
  EXPECT_THAT(refusal(with_little_ram(inputs())),
              AllOf(HasSubstr("--window half-block into"), Not(HasSubstr("--window none"))));
}

TEST_F(RefusalTest, NoWindowIsOfferedThatIsALayerByItself) {
  recipe_.prune.method = PruneMethod::kSimilarity;
  recipe_.prune.layer_sparsity = 0.34;
  recipe_.reconstruct.window = {WindowKind::kBlock, 2};
  recipe_.reconstruct.propagation = Propagation::kSparse;
  PlanInputs in = with_little_ram(inputs());
  in.block_slot_bytes = in.slot_bytes;
  EXPECT_THAT(refusal(in),
              AllOf(Not(HasSubstr("--window block")), Not(HasSubstr("--window half-block")),
                    HasSubstr("--window none into")));
}

TEST_F(RefusalTest, NoWindowIsOfferedThatTheDiskIsTooSmallFor) {
  recipe_.resources.half_block_targets = "cached";
  recipe_.reconstruct.window = {WindowKind::kBlock};
  PlanInputs in = inputs();
  in.windows = 4096;  // whose targets are no alternative in memory
  in.scratch_limit = plan_run(in).scratch.bytes();
  EXPECT_THAT(refusal(with_little_ram(in)),
              AllOf(Not(HasSubstr("--window half-block")), HasSubstr("--window none into")));
}

class ScoringRefusalTest : public RefusalTest {
 protected:
  ScoringRefusalTest() {  // units of the linears' sizes
    architecture_.heads = architecture_.kv_heads = 16;
    architecture_.head_dim = 128;
  }
  /// Of a run that takes more than 600 MiB.
  PlanInputs scored_within(uint64_t bytes) {
    PlanInputs in = with_little_ram(inputs());
    in.scoring_ram = {"RAM", {{"the model as it is stored", bytes}}, in.ram_limit, "--ram-budget"};
    in.scoring_refusal = "the scores do not fit";
    return in;
  }
  static void expect_fits(PlanInputs in, uint64_t bytes) {
    in.scoring_refusal.clear();
    EXPECT_LE(in.scoring_ram.bytes(), bytes);
    EXPECT_NO_THROW(with_ram(in, bytes));
  }
};

TEST_F(ScoringRefusalTest, ARunThatTakesMoreThanTheScoresIsTold) {
  const PlanInputs in = scored_within(200 * kMiB);
  const std::string text = refusal(in);
  EXPECT_THAT(text, AllOf(HasSubstr("the scores do not fit"), HasSubstr("this run does not fit"),
                          HasSubstr("--window none into")));
  EXPECT_GT(refused(in).ram.bytes(), 600 * kMiB);
  expect_fits(in, ram_said(text, "would fit").value());
}

TEST_F(ScoringRefusalTest, ScoresThatTakeMoreThanTheRunAreTold) {
  const PlanInputs in = scored_within(7000 * kMiB);
  const std::string text = refusal(in);
  EXPECT_THAT(text, AllOf(HasSubstr("the scores do not fit"), HasSubstr("this run does not fit"),
                          Not(HasSubstr("--window none into"))));
  EXPECT_EQ(refused(in).ram.bytes(), 7000 * kMiB);
  expect_fits(in, ram_said(text, "would fit").value());
}

TEST_F(ScoringRefusalTest, ARunThatFitsBehindItsScoresIsNoComplaint) {
  PlanInputs in = scored_within(7000 * kMiB);
  in.ram_limit = 6999 * kMiB;
  const std::string text = refusal(in);
  EXPECT_THAT(text, Not(HasSubstr("this run does not fit")));
  EXPECT_EQ(refused(in).ram.bytes(), 7000 * kMiB);
  expect_fits(in, ram_said(text, "would fit").value());
}

class DiskRefusalTest : public RefusalTest {
 protected:
  PlanInputs with_disk(uint64_t bytes) {
    PlanInputs in = inputs();
    in.windows = 640;
    in.scratch_limit = bytes;
    return in;
  }
};

TEST_F(DiskRefusalTest, WhatIsNeededIsEnoughAndLessIsNot) {
  for (const char* targets : {"auto", "cached", "recomputed"}) {
    recipe_.resources.half_block_targets = targets;
    const uint64_t needed = refused(with_disk(kMiB)).scratch.bytes();
    EXPECT_NO_THROW(plan_run(with_disk(needed))) << targets;
    EXPECT_THROW(plan_run(with_disk(needed - 1)), PlanRefused) << targets;
  }
}

TEST_F(DiskRefusalTest, TheWindowsThatWouldFitAreAllThatFit) {
  for (const char* targets : {"auto", "cached", "recomputed"}) {
    recipe_.resources.half_block_targets = targets;
    PlanInputs in = with_disk(300 * kMiB);
    const std::string text = refusal(in);
    std::smatch said;
    ASSERT_TRUE(std::regex_search(text, said, std::regex("--nsamples (\\d+) would fit"))) << text;
    in.windows = std::stoi(said[1]);
    EXPECT_NO_THROW(plan_run(in)) << targets;
    ++in.windows;
    EXPECT_THROW(plan_run(in), PlanRefused) << targets;
  }
}

// Targets that stay in memory spare the disk, where there is memory for them.
TEST_F(DiskRefusalTest, WhatIsNeededFitsTheMemoryThereIs) {
  recipe_.resources.half_block_targets = "cached";
  PlanInputs in = with_disk(kMiB);
  const uint64_t in_memory = refused(in).scratch.bytes();
  in.ram_limit = smallest_budget(with_disk(kPlenty)) + 100 * kMiB;  // the targets take 1,280
  const RunPlan plan = refused(in);
  EXPECT_TRUE(plan.ram.fits());
  EXPECT_GT(plan.scratch.bytes(), in_memory);
  in.scratch_limit = plan.scratch.bytes();
  EXPECT_NO_THROW(plan_run(in));
}

}  // namespace
}  // namespace coppice
