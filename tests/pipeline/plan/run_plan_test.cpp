#include "pipeline/plan/run_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "pipeline/errors.h"
#include "stages/units/unit_layout.h"  // resize_units
#include "tests/pipeline/plan/played_plan.h"
#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::kMiB;
using testing::kPlenty;
using testing::refusal;

/// A block of Qwen2.5-72B: 878 M parameters.
Architecture qwen_72b() {
  Architecture architecture = testing::tiny_llama(80);
  architecture.dtype = "BF16";
  architecture.hidden = 8192;
  architecture.ffn = 29568;
  architecture.heads = 64;
  architecture.kv_heads = 8;
  architecture.head_dim = 128;
  architecture.vocab = 152064;
  resize_units(architecture);
  for (LinearSpec& linear : architecture.linears) {
    if (linear.input == "attention_in" || linear.input == "mlp_in") linear.in = 8192;
    if (linear.role == "o" || linear.role == "down") linear.out = 8192;
  }
  for (NormSpec& norm : architecture.norms) norm.size = architecture.hidden;
  return architecture;
}

using RunPlanTest = testing::PlayedPlan;

uint64_t bytes_of(const PlannedResource& resource, const std::string& item) {
  for (const PlanItem& found : resource.items) {
    if (found.name == item) return found.bytes;
  }
  return 0;
}

TEST_F(RunPlanTest, EveryBudgetAboveTheSmallestIsKept) {
  const uint64_t smallest = smallest_budget(inputs());
  for (uint64_t budget = smallest; budget < 20 * smallest; budget += smallest / 16) {
    const RunPlan plan = with_ram(inputs(), budget);
    EXPECT_LE(plan.ram.bytes(), budget);
  }
}

TEST_F(RunPlanTest, EveryBudgetIsKeptWhateverFlows) {
  for (const Window window : {Window{WindowKind::kNone}, Window{WindowKind::kMatrix},
                              Window{WindowKind::kHalfBlock}, Window{WindowKind::kBlock, 2}}) {
    for (const Propagation propagation :
         {Propagation::kDense, Propagation::kSparse, Propagation::kMixed}) {
      for (const StatisticsOf statistics : {StatisticsOf::kAuto, StatisticsOf::kDense}) {
        recipe_.reconstruct.window = window;
        recipe_.reconstruct.propagation = propagation;
        recipe_.prune.statistics = statistics;
        const uint64_t smallest = smallest_budget(inputs());
        for (uint64_t budget = smallest; budget < 20 * smallest; budget += smallest / 4) {
          EXPECT_LE(with_ram(inputs(), budget).ram.bytes(), budget);
        }
      }
    }
  }
}

TEST_F(RunPlanTest, EveryDeviceHasSlotsWorkAndAShardOfItsOwn) {
  PlanInputs one = inputs(), two = inputs();
  one.rates = two.rates = rates();
  two.devices = 2;
  const RunPlan alone = plan_run(one), shared = plan_run(two);
  EXPECT_GE(shared.settings.outputs, 2);
  EXPECT_GT(shared.ram.bytes(),
            alone.ram.bytes() + uint64_t(alone.settings.slots) * one.slot_bytes);
  EXPECT_LT(shared.compute_seconds, 0.75 * alone.compute_seconds);
  const uint64_t smallest = smallest_budget(two);
  EXPECT_GT(smallest, smallest_budget(one));
  EXPECT_LE(with_ram(two, smallest).ram.bytes(), smallest);
}

// 128 windows of 2,048 tokens: half-blocks by AdamW within 24 GiB of a GPU and 8 of the host.
TEST_F(RunPlanTest, HalfBlocksOf72BParametersFitASmallCard) {
  architecture_ = qwen_72b();
  PlanInputs in = inputs();
  in.windows = 128;
  in.seqlen = 2048;
  in.compute_bytes = 2;
  in.is_host = false;
  in.blocks_to_do = 80;
  in.slot_bytes = in.image_bytes = 877'684'736 * uint64_t{2};
  in.process_bytes = 1024 * kMiB;
  in.device_limit = 24 * 1024 * kMiB;
  const RunPlan plan = with_ram(in, 8 * 1024 * kMiB);
  EXPECT_LE(plan.device.bytes(), in.device_limit) << complaint_about(plan.device);
  EXPECT_EQ(plan.settings.slots, 2) << "the next block is read beside this one's adaptation";
}

TEST_F(RunPlanTest, EveryBudgetBelowTheSmallestIsRefused) {
  const uint64_t smallest = smallest_budget(inputs());
  for (uint64_t budget = 0; budget + kMiB < smallest; budget += smallest / 16) {
    EXPECT_THROW(with_ram(inputs(), budget), BudgetError);
  }
}

TEST_F(RunPlanTest, TheSmallestBudgetTakesTheSmallestBuffers) {
  recipe_.reconstruct.window = {WindowKind::kNone};  // else the copies hide behind the optimiser's
  const RunPlan plan = with_ram(inputs(), smallest_budget(inputs()));
  RunSettings settings;
  settings.slots = settings.outputs = settings.windows_ahead = settings.windows_behind = 1;
  settings.convert = Calibrate::Convert::kOnUse;
  EXPECT_EQ(plan.settings, settings);
}

TEST_F(RunPlanTest, MoreMemoryNeverTakesASettingBack) {
  RunSettings before;
  before.slots = before.outputs = before.windows_ahead = before.windows_behind = 0;
  bool converted_ahead = false;
  const uint64_t smallest = smallest_budget(inputs());
  for (uint64_t budget = smallest; budget < 20 * smallest; budget += smallest / 8) {
    const RunSettings now = with_ram(inputs(), budget).settings;
    EXPECT_GE(now.slots, before.slots);
    EXPECT_GE(now.targets_in_ram, before.targets_in_ram);
    EXPECT_GE(now.inputs_in_ram, before.inputs_in_ram);
    EXPECT_GE(now.convert == Calibrate::Convert::kAhead, converted_ahead);
    converted_ahead = now.convert == Calibrate::Convert::kAhead;
    before = now;
  }
  EXPECT_EQ(before.targets_in_ram, 64);
  EXPECT_EQ(before.inputs_in_ram, 64);
}

TEST_F(RunPlanTest, HiddenStatesFillABudgetAndNothingElse) {
  EXPECT_EQ(plan_run(inputs()).settings.targets_in_ram, 0);
  EXPECT_EQ(with_ram(inputs(), kPlenty).settings.targets_in_ram, 64);
}

TEST_F(RunPlanTest, HiddenStatesStayInMemoryWhereTheDiskWouldBeWaitedFor) {
  PlanInputs in = inputs();
  in.rates = rates();
  EXPECT_EQ(plan_run(in).settings.targets_in_ram, 0);
  in.rates.read_bytes = in.rates.written_bytes = 1e6;
  in.recipes.front().resources.half_block_targets = "cached";
  EXPECT_EQ(plan_run(in).settings.targets_in_ram, 64);
}

TEST_F(RunPlanTest, ASecondShardInMemoryIsForADiskSlowerThanTheForward) {
  PlanInputs in = inputs();
  in.rates = rates();
  EXPECT_EQ(plan_run(in).settings.outputs, 1);
  in.rates.written_bytes = 1e6;
  EXPECT_EQ(plan_run(in).settings.outputs, 2);
}

TEST_F(RunPlanTest, NumberOfSlotsGivenIsNotChanged) {
  recipe_.resources.prefetch_blocks = 5;
  EXPECT_EQ(plan_run(inputs()).settings.slots, 5);
}

TEST_F(RunPlanTest, LogitsThatJudgeASweepArePlanned) {
  recipe_.reconstruct.window = {WindowKind::kNone};
  PlanInputs in = inputs();
  in.is_judged = true;
  const uint64_t without = plan_run(in).ram.bytes();
  in.head_rows = 1'000'000;
  const uint64_t logits = uint64_t(in.head_rows * in.seqlen) * sizeof(float);
  EXPECT_LE(without, logits);  // else this would show nothing
  EXPECT_GE(plan_run(in).ram.bytes(), 2 * logits);
}

TEST_F(RunPlanTest, RecordsArePlannedInMemoryAndOnDisk) {
  PlanInputs in = inputs();
  const RunPlan without = plan_run(in);
  in.report_bytes = 70 * kMiB;
  in.journal_bytes = 7 * kMiB;
  const RunPlan with = plan_run(in);
  EXPECT_EQ(with.ram.bytes(), without.ram.bytes() + in.report_bytes);
  EXPECT_EQ(with.scratch.bytes(), without.scratch.bytes() + in.journal_bytes);
}

TEST_F(RunPlanTest, UnalignedWeightsAreCopiedOfEverySpanThatIsBegun) {
  PlanInputs in = inputs();
  const std::string item = "weights that lie unaligned";
  EXPECT_EQ(bytes_of(plan_run(in).ram, item), 0U);
  in.unaligned_bytes = 100 * kMiB;
  EXPECT_EQ(bytes_of(plan_run(in).ram, item), in.unaligned_bytes);
  in.devices = 2;
  const RunPlan plan = plan_run(in);
  EXPECT_EQ(bytes_of(plan.ram, item), 2 * uint64_t(plan.settings.slots) * in.unaligned_bytes);
}

TEST_F(RunPlanTest, WithSeveralDevicesStatisticsWaitWithTheirSpans) {
  recipe_.prune.method = PruneMethod::kSparseGpt;
  PlanInputs in = inputs();
  const std::string item = "statistics that wait with their spans";
  EXPECT_EQ(bytes_of(plan_run(in).ram, item), 0U);
  in.devices = 2;
  const RunPlan plan = plan_run(in);
  ASSERT_GT(plan.settings.slots, 1);
  const uint64_t waiting = 2 * uint64_t(plan.settings.slots - 1);
  EXPECT_GE(bytes_of(plan.ram, item), waiting * 4 * 8192 * 8192);  // XᵀX of what `down` reads
}

TEST_F(RunPlanTest, RandomScoresAreMadeOnTheHost) {
  recipe_.prune.method = PruneMethod::kRandom;
  const std::string item = "random scores on their way to the device";
  PlanInputs in = inputs();
  EXPECT_EQ(bytes_of(plan_run(in).ram, item), 0U);
  in.is_host = false;
  in.device_limit = kPlenty;
  EXPECT_EQ(bytes_of(plan_run(in).ram, item), 4U * 2048 * 8192);
}

TEST_F(RunPlanTest, TargetsWithoutRoomAnywhereAreRecomputed) {
  PlanInputs in = inputs();
  in.scratch_limit = plan_run(in).scratch.bytes() - kMiB;
  in.ram_limit = smallest_budget(inputs()) + 120 * kMiB;  // the targets take 128 MiB
  const RunPlan plan = plan_run(in);
  EXPECT_TRUE(plan.settings.recompute_targets);
  EXPECT_LE(plan.scratch.bytes(), in.scratch_limit);
}

TEST_F(RunPlanTest, TargetsAreRecomputedWhereTheDiskIsSlowAndProductsAreCheap) {
  PlanInputs in = inputs();
  in.rates = rates();
  EXPECT_FALSE(plan_run(in).settings.recompute_targets);
  in.rates.attention_product_flop = in.rates.mlp_product_flop = in.rates.attention_flop = 1e15;
  in.rates.touched_bytes = in.rates.encoded_bytes = in.rates.decoded_bytes = 1e13;
  in.rates.selected_weights = 1e12;
  in.rates.read_bytes = in.rates.written_bytes = 1e8;
  in.ram_limit = smallest_budget(inputs()) + 400 * kMiB;  // not all hidden states
  EXPECT_TRUE(plan_run(in).settings.recompute_targets);
}

TEST_F(RunPlanTest, ActivationsAreComputedAgainOnlyWhereAllOfThemDoNotFit) {
  recipe_.reconstruct.window = {WindowKind::kBlock};
  recipe_.reconstruct.batch_size = 16;
  const PlanInputs in = inputs();
  const uint64_t smallest = smallest_budget(in);
  const RunPlan tight = with_ram(in, smallest);
  EXPECT_EQ(tight.settings.kept_activations, KeptActivations::kOfOneHalf);
  uint64_t budget = smallest;
  while (with_ram(in, budget).settings.kept_activations == KeptActivations::kOfOneHalf) {
    ASSERT_LT(budget += 16 * kMiB, 8 * smallest);
  }
  EXPECT_GT(budget, smallest + 256 * kMiB);  // what the attention half keeps of 8,192 tokens
  PlanInputs timed = in;
  timed.rates = rates();
  EXPECT_GT(with_ram(timed, smallest).compute_seconds, with_ram(timed, budget).compute_seconds);
  EXPECT_EQ(plan_run(in).settings.kept_activations, KeptActivations::kAll);
}

TEST_F(RunPlanTest, AHalfKeepsItsActivationsWhateverTheBudget) {
  const PlanInputs in = inputs();
  EXPECT_EQ(with_ram(in, smallest_budget(in)).settings.kept_activations, KeptActivations::kAll);
}

TEST_F(RunPlanTest, TargetsAreAsTheRecipeSays) {
  recipe_.resources.half_block_targets = "recomputed";
  EXPECT_TRUE(plan_run(inputs()).settings.recompute_targets);
  recipe_.reconstruct.window = {WindowKind::kBlock};  // has none
  EXPECT_FALSE(plan_run(inputs()).settings.recompute_targets);
}

TEST_F(RunPlanTest, TargetsThatTheDiskHasNoRoomForStayInMemory) {
  PlanInputs in = inputs();
  in.recipes.front().resources.half_block_targets = "cached";
  in.scratch_limit = plan_run(in).scratch.bytes() - kMiB;
  EXPECT_EQ(plan_run(in).settings.targets_in_ram, in.windows);
}

TEST_F(RunPlanTest, MemoryDoesNotGrowWithBlocksOrWindows) {
  PlanInputs in = inputs();
  const uint64_t bytes = plan_run(in).ram.bytes();
  in.blocks_to_do *= 10;
  in.windows *= 10;
  EXPECT_EQ(plan_run(in).ram.bytes(), bytes);
}

TEST_F(RunPlanTest, TimeIsTheLongerOfComputeAndDisk) {
  PlanInputs in = inputs();
  in.rates = rates();
  const RunPlan fast = plan_run(in);
  EXPECT_GT(fast.compute_seconds, fast.disk_seconds);
  EXPECT_GE(fast.seconds, fast.compute_seconds);
  EXPECT_LT(fast.seconds, fast.compute_seconds + fast.disk_seconds + 1);
  in.rates.read_bytes /= 1e4;
  const RunPlan slow = plan_run(in);
  EXPECT_GT(slow.disk_seconds, slow.compute_seconds);
  EXPECT_GE(slow.seconds, slow.disk_seconds);
}

TEST_F(RunPlanTest, TimeGrowsWithBlocksAndMachine) {
  PlanInputs in = inputs();
  in.rates = rates();
  const double seconds = plan_run(in).compute_seconds;
  in.blocks_to_do *= 2;
  EXPECT_NEAR(plan_run(in).compute_seconds, 2 * seconds, 0.05 * seconds);
  in.rates.mlp_product_flop *= 4;
  in.rates.attention_product_flop *= 4;
  EXPECT_LT(plan_run(in).compute_seconds, 1.5 * seconds);
}

TEST_F(RunPlanTest, AStageThatWasRehearsedTakesWhatItTookThere) {
  PlanInputs in = inputs();
  in.rates = rates();
  const RunPlan before = plan_run(in);
  in.rates.corrections = {{"reconstruct", 3.0}};
  const RunPlan after = plan_run(in);
  for (size_t i = 0; i < before.stages.size(); ++i) {
    const double factor = before.stages[i].name == "reconstruct" ? 3 : 1;
    EXPECT_DOUBLE_EQ(after.stages[i].seconds, factor * before.stages[i].seconds)
        << before.stages[i].name;
  }
  EXPECT_GT(after.seconds, before.seconds);
}

TEST_F(RunPlanTest, MemoryTouchedForTheFirstTimeTakesItsTime) {
  PlanInputs in = inputs();
  in.rates = rates();
  const double fast = plan_run(in).compute_seconds;
  in.rates.new_memory_bytes /= 100;
  EXPECT_GT(plan_run(in).compute_seconds, fast);
}

TEST_F(RunPlanTest, WithoutRatesThereIsNoTime) {
  EXPECT_EQ(plan_run(inputs()).seconds, 0);
  EXPECT_GT(plan_run(inputs()).bytes_read, inputs().block_read_bytes);
}

TEST_F(RunPlanTest, OnADeviceTheBlocksLieInItsMemory) {
  PlanInputs in = inputs();
  const uint64_t host = plan_run(in).ram.bytes();
  in.is_host = false;
  in.device_limit = kPlenty;
  in.device_limit_name = "--vram-budget";
  const RunPlan plan = plan_run(in);
  EXPECT_LT(plan.ram.bytes(), host + 600 * kMiB);  // staging buffers instead
  EXPECT_GT(plan.device.bytes(), 2 * in.slot_bytes);
  in.device_limit = in.slot_bytes;
  EXPECT_THAT(refusal(in), AllOf(HasSubstr("device memory"), HasSubstr("--vram-budget")));
}

}  // namespace
}  // namespace coppice
