// The facts of a plan, gathered on a small checkpoint.
#include "pipeline/plan/plan_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Key;

namespace fs = std::filesystem;

class PlanInputsTest : public ::testing::Test {
 protected:
  PlanInputsTest() {
    recipe_.resources.device = "cpu";
    testing::write_checkpoint(dir_.path(), testing::small_config(3, 16, 24, 64));
    model_.emplace(open_model(dir_.path(), {}));
  }
  PlanInputs inputs(const fs::path& scratch = "scratch", uint64_t held = 0) {
    WorkLeft left = all_work(model_->architecture, {{recipe_}});
    left.scratch_bytes = held;
    const OutputDirectory output(dir_ / "out", *model_);
    return plan_inputs(*model_, {{recipe_}}, ModelSpans(*model_, tokens_), 8, machine(), output,
                       scratch.is_absolute() ? scratch : dir_ / scratch, left);
  }
  Machine& machine() {
    if (!machine_) machine_.emplace(recipe_.resources, [](const std::string&) {});
    return *machine_;
  }

  testing::TempDir dir_;
  Recipe recipe_;
  std::optional<SourceModel> model_;
  TokenWindows tokens_{.ids = {0}, .seqlen = 1, .dataset_sha256 = "", .xxh3_128 = ""};
  std::optional<Machine> machine_;
};

TEST_F(PlanInputsTest, ADirectoryThatIsNotThereYetIsTheOneAboveIt) {
  const PlanInputs in = inputs("not/there/yet");
  EXPECT_THAT(in.scratch_limit_name, HasSubstr("free on " + dir_.path().string()));
  EXPECT_THAT(in.output_limit_name, HasSubstr("free on " + dir_.path().string()));
}

TEST_F(PlanInputsTest, OnOneFileSystemTheOutputsShareIsNotForHiddenStates) {
  const PlanInputs in = inputs();
  EXPECT_THAT(in.scratch_limit_name, HasSubstr("less the output"));
}

TEST_F(PlanInputsTest, OnAnotherFileSystemAllThatIsFreeIsForHiddenStates) {
  const fs::path other = "/dev/shm";
  if (!fs::exists(other) || dir_.path().string().starts_with(other.string())) {
    GTEST_SKIP() << "no second file system";
  }
  const PlanInputs in = inputs(other / "coppice_plan_inputs_test");
  EXPECT_EQ(in.scratch_limit_name, "free on /dev/shm");
}

TEST_F(PlanInputsTest, HiddenStatesOfAnEarlierProcessAreRoomForThisOne) {
  constexpr uint64_t kHeld = uint64_t{1} << 50;  // more than any other change of the disk
  EXPECT_GE(inputs("scratch", kHeld).scratch_limit, kHeld);
}

TEST_F(PlanInputsTest, ADiskBudgetBelowWhatIsFreeIsTheLimit) {
  recipe_.resources.disk_budget_bytes = 12345;
  EXPECT_EQ(inputs().scratch_limit, 12345U);
  EXPECT_EQ(inputs().scratch_limit_name, "--disk-budget");
}

TEST_F(PlanInputsTest, ADiskBudgetAboveWhatIsFreeIsNot) {
  recipe_.resources.disk_budget_bytes = uint64_t{1} << 60;
  EXPECT_THAT(inputs().scratch_limit_name, HasSubstr("free on"));
}

TEST_F(PlanInputsTest, ARamBudgetIsTheLimitAsItIs) {
  recipe_.resources.ram_budget_bytes = uint64_t{3} << 30;
  const PlanInputs in = inputs();
  EXPECT_EQ(in.ram_limit, uint64_t{3} << 30);
  EXPECT_TRUE(in.is_ram_limit_given);
  EXPECT_EQ(in.ram_limit_name, "--ram-budget");
}

TEST_F(PlanInputsTest, TheProbeFillsEveryRateAndLeavesNothingOnTheDisk) {
  PlanInputs in = inputs();
  in.seqlen = 32;
  fs::create_directories(dir_ / "scratch");
  measure_rates(*model_, machine(), dir_ / "scratch", plan_run(in), in);
  const Rates& rates = in.rates;
  EXPECT_TRUE(rates.known());
  for (const double rate :
       {rates.attention_product_flop, rates.mlp_product_flop, rates.attention_flop,
        rates.touched_bytes, rates.selected_weights, rates.new_memory_bytes, rates.encoded_bytes,
        rates.decoded_bytes, rates.codec_ratio, rates.read_bytes, rates.written_bytes}) {
    EXPECT_GT(rate, 0);
  }
  EXPECT_THAT(rates.corrections, ElementsAre(Key("calibrate"), Key("prune"), Key("reconstruct")));
  EXPECT_TRUE(fs::is_empty(dir_ / "scratch"));
}

TEST_F(PlanInputsTest, WithoutTheProbeNothingIsKnownOfTime) {
  recipe_.resources.probe = false;
  PlanInputs in = inputs();
  measure_rates(*model_, machine(), dir_ / "scratch", plan_run(in), in);
  EXPECT_FALSE(in.rates.known());
}

TEST_F(PlanInputsTest, Fp8WeightsAreHeldAsBf16BesideTheirSlot) {
  EXPECT_EQ(inputs().widened_bytes, 0u);
  const uint64_t f32_image = inputs().image_bytes;
  testing::write_fp8_checkpoint(dir_.path(), testing::small_config(3, 16, 24, 64));
  model_.emplace(open_model(dir_.path(), {}));
  uint64_t weights = 0;
  for (const LinearSpec& linear : model_->architecture.linears) {
    weights += uint64_t(linear.in * linear.out);
  }
  EXPECT_EQ(inputs().widened_bytes, 2 * weights);
  EXPECT_LT(inputs().image_bytes, f32_image);
  EXPECT_GT(inputs().image_bytes, 2 * weights);  // shards are bf16
}

}  // namespace
}  // namespace coppice
