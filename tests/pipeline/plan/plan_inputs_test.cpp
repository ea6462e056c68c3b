// The facts of a plan, gathered on a small checkpoint.
#include "pipeline/plan/plan_inputs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <cstring>
#include <fstream>

#include "pipeline/plan/disk_probe.h"
#include "pipeline/prune_run_options.h"
#include "storage/io/file.h"  // read_file
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::Key;
using ::testing::StartsWith;

namespace fs = std::filesystem;

constexpr uint64_t kMiB = uint64_t{1} << 20;

/// No file of this process may be larger, as if the disk were full.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(uint64_t bytes) : signal_(std::signal(SIGXFSZ, SIG_IGN)) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, signal_);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;

 private:
  void (*signal_)(int);
  rlimit before_{};
};

/// Moves the data of model.safetensors on by some bytes, as a writer does that does not pad.
void shift_data(const fs::path& directory, size_t bytes) {
  const fs::path path = directory / "model.safetensors";
  std::string file = read_file(path);
  uint64_t header = 0;
  std::memcpy(&header, file.data(), sizeof header);
  file.insert(sizeof header + header, bytes, ' ');
  header += bytes;
  std::memcpy(file.data(), &header, sizeof header);
  std::ofstream(path, std::ios::binary) << file;
}

class PlanInputsTest : public ::testing::Test {
 protected:
  PlanInputsTest() {
    recipe_.resources.device = "cpu";
    testing::write_checkpoint(dir_.path(), testing::small_config(3, 16, 24, 64));
    model_.emplace(open_model(dir_.path(), {}));
  }
  PlanInputs inputs(const fs::path& scratch = "scratch", uint64_t held = 0) {
    return inputs(PlannedJob{{recipe_}}, scratch, held);
  }
  PlanInputs inputs(const PlannedJob& job, const fs::path& scratch = "scratch", uint64_t held = 0) {
    WorkLeft left = all_work(model_->architecture, job);
    left.scratch_bytes = held;
    const OutputDirectory output(dir_ / "out", *model_);
    return plan_inputs(*model_, job, ModelSpans(*model_, tokens_, blocks_per_span(job.recipes)), 8,
                       machine(), output, scratch.is_absolute() ? scratch : dir_ / scratch, left);
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

TEST_F(PlanInputsTest, TheProbeWritesNoMoreThanAQuarterOfWhatThePlanHasForTheDisk) {
  PlanInputs in = inputs();
  in.seqlen = 32;
  fs::create_directories(dir_ / "scratch");
  RunPlan plan = plan_run(in);
  plan.scratch.items = {{"all", 64 * kMiB}};
  {
    const FileSizeLimit limit(16 * kMiB);
    measure_rates(*model_, machine(), dir_ / "scratch", plan, in);
  }
  EXPECT_GT(in.rates.written_bytes, 0);
  EXPECT_TRUE(fs::is_empty(dir_ / "scratch"));
}

TEST_F(PlanInputsTest, AProbeThatTheDiskRefusesLeavesNothingThere) {
  fs::create_directories(dir_ / "scratch");
  Rates rates;
  {
    const FileSizeLimit limit(16 * kMiB);
    probe_disk(model_->checkpoint, dir_ / "scratch", 64 * kMiB, *make_io_engine({}), rates);
  }
  EXPECT_TRUE(fs::is_empty(dir_ / "scratch"));
}

TEST_F(PlanInputsTest, WhereNextToNothingMayBeWrittenNothingIs) {
  fs::create_directories(dir_ / "scratch");
  Rates rates;
  probe_disk(model_->checkpoint, dir_ / "scratch", 3 * kMiB, *make_io_engine({}), rates);
  EXPECT_EQ(rates.written_bytes, 0);
}

TEST_F(PlanInputsTest, WeightsThatLieUnalignedAreCopied) {
  EXPECT_EQ(inputs().unaligned_bytes, 0U);
  shift_data(dir_.path(), 2);  // the elements have 4
  model_.emplace(open_model(dir_.path(), {}));
  uint64_t block = 0;
  for (const NamedShape& tensor : block_tensors(model_->architecture, 0)) {
    block += model_->checkpoint.tensor(tensor.name).bytes;
  }
  EXPECT_EQ(inputs().unaligned_bytes, block);
}

TEST_F(PlanInputsTest, RecordsGrowWithLinearsAndRecipes) {
  const PlanInputs all = inputs();
  EXPECT_GT(all.report_bytes, 3U * 7 * 1000);
  EXPECT_GT(all.journal_bytes, 3U * 7 * 500);
  EXPECT_EQ(inputs(PlannedJob{{recipe_, recipe_}}).report_bytes, 2 * all.report_bytes);
  recipe_.prune.targets = {"up_proj"};
  EXPECT_LT(inputs().report_bytes, all.report_bytes);
  recipe_.prune.targets = {};
  recipe_.reconstruct.window = {WindowKind::kMatrix};
  EXPECT_GT(inputs().report_bytes, 2 * all.report_bytes);
}

TEST_F(PlanInputsTest, OfUnitsTheLinearsThatLoseSomeAreRecorded) {
  recipe_.prune.method = PruneMethod::kFlap;
  recipe_.prune.ffn_sparsity = 0.5;
  const uint64_t ffn = inputs().report_bytes;
  recipe_.prune.head_sparsity = 0.5;
  EXPECT_GT(inputs().report_bytes, ffn);
}

TEST_F(PlanInputsTest, AProcessThatHasWorkedIsPlannedAsItWasBefore) {
  PruneRunOptions options;
  options.recipes = {{"", recipe_, {}}};
  EXPECT_GT(inputs(options.job()).process_bytes, kMiB);
  options.process_bytes = 12345;
  EXPECT_EQ(inputs(options.job()).process_bytes, 12345U);
}

TEST_F(PlanInputsTest, ScoresThatDoNotFitAreRefusedByThePlanItemByItem) {
  recipe_.prune.method = PruneMethod::kSnip;
  recipe_.prune.ffn_sparsity = 0.5;
  recipe_.resources.ram_budget_bytes = kMiB;
  const PlanInputs in = inputs();
  EXPECT_THAT(in.scoring_refusal, HasSubstr("scores units with the whole model in memory"));
  EXPECT_THAT(in.scoring_ram.items, Contains(Field(&PlanItem::name, "the model as it is stored")));
  try {
    plan_run(in);
    FAIL() << "nothing was refused";
  } catch (const PlanRefused& refused) {
    EXPECT_THAT(refused.what(), StartsWith(in.scoring_refusal));
    EXPECT_FALSE(fits(refused.smallest()));
  }
}

TEST_F(PlanInputsTest, TheSlotOfABlockIsKnownWhereSpansHaveSeveral) {
  EXPECT_EQ(inputs().block_slot_bytes, inputs().slot_bytes);
  testing::write_checkpoint(dir_.path(), testing::small_config(3, 256, 1024, 64));
  model_.emplace(open_model(dir_.path(), {}));
  const uint64_t one = inputs().slot_bytes;
  recipe_.reconstruct.window = {WindowKind::kBlock, 3};
  const PlanInputs three = inputs();
  EXPECT_GT(three.slot_bytes, one);
  EXPECT_EQ(three.block_slot_bytes, one);
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
