// A whole run on a GPU that is played on the host, which does nothing before somebody waits: what
// is read too early, given back too early or never waited for shows in the bytes that are written.
#include "pipeline/prune_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>

#include "pipeline/device/gpu_device.h"
#include "pipeline/errors.h"
#include "pipeline/eval_run.h"
#include "storage/cache/token_file.h"
#include "tests/support/fake_gpu.h"
#include "tests/support/played_backend.h"
#include "tests/support/small_checkpoint.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;

class PruneRunOnAGpu : public ::testing::TestWithParam<const char*> {
 protected:
  PruneRunOnAGpu() {
    TokenFile tokens{{}, 16};
    for (int i = 0; i < 8 * 16; ++i) tokens.ids.push_back(i * 7 % 31);
    write_token_file(dir_ / "tokens.h5", tokens);
    recipe_.calibration.nsamples = 8;
    recipe_.calibration.seqlen = 16;
    recipe_.reconstruct.lr = 1e-2;
    recipe_.reconstruct.validation_fraction = 0.25;
    recipe_.resources.probe = false;
    recipe_.resources.compute_dtype = std::string(GetParam()).ends_with("bf16") ? "bf16" : "fp32";
    recipe_.resources.slab_bytes = 4096;  // many, each used again and again
    recipe_.resources.num_slabs = 2;
    gpu_.total_bytes = uint64_t{1} << 30;
  }

  PruneRunOptions options_of(const std::string& name, DeviceFactory factory) {
    PruneRunOptions options;
    options.model = testing::golden_directory(GetParam());
    options.dataset = dir_ / "tokens.h5";
    options.output = dir_ / name;
    options.work = dir_ / (name + ".work");
    options.trace = dir_ / (name + ".trace");
    options.recipes = {{"", recipe_, {}}};
    options.verbosity = Verbosity::kQuiet;
    options.device_factory = std::move(factory);
    return options;
  }
  RunResult run(const std::string& name, DeviceFactory factory, Resume resume = Resume::kNo) {
    PruneRunOptions options = options_of(name, std::move(factory));
    options.resume = resume;
    return prune_run(options);
  }
  /// Of Wanda and magnitude; what they write is not wanted.
  PruneRunOptions sweep(const std::string& name, DeviceFactory factory) {
    PruneRunOptions options = options_of(name, std::move(factory));
    Recipe magnitude = recipe_;
    magnitude.prune.method = PruneMethod::kMagnitude;
    options.recipes = {{"wanda", recipe_, {"wanda"}}, {"magnitude", magnitude, {"magnitude"}}};
    options.sweep = SweepOptions{{"prune.method"}, /*writes_checkpoints=*/false};
    return options;
  }
  static DeviceFactory cpu() {
    return [](const DeviceOptions& options) {
      return make_devices({.device = "cpu", .compute_dtype = options.compute_dtype});
    };
  }
  RunResult on_cpu(const std::string& name) { return run(name, cpu()); }
  DeviceFactory played() { return played(gpu_); }
  static DeviceFactory played(testing::FakeGpu& gpu) {
    return [&gpu](const DeviceOptions& options) {
      std::vector<std::unique_ptr<Device>> devices;
      devices.push_back(std::make_unique<GpuDevice>(testing::make_fake_driver(gpu), options));
      return devices;
    };
  }

  /// By name, what loads.
  std::map<std::string, std::string> shards(const std::string& name) const {
    std::map<std::string, std::string> content;
    for (const fs::directory_entry& entry : fs::directory_iterator(dir_ / name)) {
      if (entry.path().extension() != ".safetensors") continue;
      std::ostringstream text;
      text << std::ifstream(entry.path(), std::ios::binary).rdbuf();
      content[entry.path().filename().string()] = text.str();
    }
    return content;
  }
  std::set<std::string> rows_of_trace(const std::string& name) const {
    std::set<std::string> rows;
    for (const nlohmann::json& event :
         nlohmann::json::parse(std::ifstream(dir_ / (name + ".trace")))) {
      if (event.contains("cat")) rows.insert(event.at("cat"));
    }
    return rows;
  }

  testing::TempDir dir_;
  testing::FakeGpu gpu_;
  Recipe recipe_;
};

TEST_P(PruneRunOnAGpu, WritesTheBytesOfARunOnTheCpu) {
  on_cpu("cpu");
  const RunResult result = run("gpu", played());
  EXPECT_EQ(result.outcome, RunOutcome::kFinished);
  EXPECT_EQ(shards("gpu"), shards("cpu"));
  EXPECT_THAT(gpu_.misuses(), IsEmpty());
  EXPECT_EQ(gpu_.allocated_bytes(), 0u);
  EXPECT_EQ(gpu_.num_pinned(), 0u);
}

TEST_P(PruneRunOnAGpu, PropagatesAsTheCpuDoes) {
  recipe_.reconstruct.propagation = Propagation::kMixed;
  recipe_.prune.statistics = StatisticsOf::kPropagated;
  recipe_.reconstruct.window = {WindowKind::kBlock};
  on_cpu("cpu");
  run("gpu", played());
  EXPECT_EQ(shards("gpu"), shards("cpu"));
  EXPECT_THAT(gpu_.misuses(), IsEmpty());
}

// At every 29th of its calls, until the run is through before one of them.
TEST_P(PruneRunOnAGpu, LostAtAnyMomentEndsWithAnErrorAndContinuesToTheSameBytes) {
  on_cpu("cpu");
  int num_lost = 0;
  for (int calls = 3;; calls += 29) {
    const std::string name = "gpu" + std::to_string(calls);
    const auto lost = std::make_unique<testing::FakeGpu>();
    lost->total_bytes = gpu_.total_bytes;
    lost->lose_after(calls);
    try {
      run(name, played(*lost));
      EXPECT_EQ(shards(name), shards("cpu"));
      break;
    } catch (const std::exception& error) {
      EXPECT_THAT(error_chain(error), HasSubstr("the GPU is lost")) << calls;
      ++num_lost;
    }
    EXPECT_THAT(lost->misuses(), IsEmpty()) << calls;
    const bool has_begun = fs::exists(dir_ / (name + ".work") / "journal.bin");
    run(name, played(gpu_), has_begun ? Resume::kYes : Resume::kNo);
    ASSERT_EQ(shards(name), shards("cpu")) << calls;
  }
  EXPECT_GT(num_lost, 10);
}

// Tensors of the device and of the host do not mix there.
TEST_P(PruneRunOnAGpu, ComputesOnItsOwnDeviceWhatTheCpuDoes) {
  for (const Propagation propagation : {Propagation::kDense, Propagation::kMixed}) {
    recipe_.reconstruct.propagation = propagation;
    const std::string name = propagation == Propagation::kDense ? "dense" : "mixed";
    const RunResult expected = on_cpu(name + ".cpu");
    gpu_.where = testing::played_device();
    const RunResult found = run(name + ".gpu", played());
    ASSERT_EQ(found.outcome, RunOutcome::kFinished);
    for (size_t block = 0; block < expected.report.at("blocks").size(); ++block) {
      const auto& windows = expected.report["blocks"][block]["windows"];
      for (size_t window = 0; window < windows.size(); ++window) {
        const double loss = windows[window].at("validation_reconstructed");
        const auto& same = found.report["blocks"][block]["windows"][window];
        EXPECT_NEAR(same.at("validation_reconstructed"), loss, 0.05 * loss) << name << block;
      }
    }
    EXPECT_THAT(gpu_.misuses(), IsEmpty());
  }
}

// Trials whose results are judged as whole models, to the head.
TEST_P(PruneRunOnAGpu, JudgesRecipesThereAsTheCpuDoes) {
  PruneRunOptions options = sweep("cpu", cpu());
  const nlohmann::json expected = prune_run(options).report;
  gpu_.where = testing::played_device();
  options = sweep("gpu", played());
  const nlohmann::json found = prune_run(options).report;
  ASSERT_EQ(found.at("rows").size(), 2u);
  for (size_t row = 0; row < 2; ++row) {
    const double loss = expected["rows"][row].at("held_out_loss");
    EXPECT_NEAR(found["rows"][row].at("held_out_loss"), loss, 0.01 * loss);
  }
  EXPECT_THAT(gpu_.misuses(), IsEmpty());
}

// The whole model lies on the device, before anything streams.
TEST_P(PruneRunOnAGpu, ScoresUnitsThereByTheLoss) {
  recipe_.prune.method = PruneMethod::kSnip;
  recipe_.prune.ffn_sparsity = recipe_.prune.head_sparsity = 0.5;
  recipe_.reconstruct.solver = Solver::kLiar;
  gpu_.where = testing::played_device();
  EXPECT_EQ(run("gpu", played()).outcome, RunOutcome::kFinished);
  EXPECT_THAT(gpu_.misuses(), IsEmpty());
}

TEST_P(PruneRunOnAGpu, EvaluatesThereAsTheCpuDoes) {
  const auto quality = [this](const std::string& name, DeviceFactory factory) {
    EvalRunOptions options;
    options.model = options.against = testing::golden_directory(GetParam());
    options.work = dir_ / (name + ".eval");
    options.text = dir_ / "tokens.h5";
    options.seqlen = 16;
    options.verbosity = Verbosity::kQuiet;
    options.resources = recipe_.resources;
    options.device_factory = std::move(factory);
    return eval_run(options).quality;
  };
  const Quality expected = quality("cpu", cpu());
  gpu_.where = testing::played_device();
  const Quality found = quality("gpu", played());
  EXPECT_NEAR(found.nll, expected.nll, 0.01 * expected.nll);
  ASSERT_TRUE(found.against.has_value());
  EXPECT_NEAR(found.against->kl_mean, 0, 1e-6);
  EXPECT_THAT(gpu_.misuses(), IsEmpty());
}

TEST_P(PruneRunOnAGpu, ShowsUploadsAndDownloadsOnItsTrace) {
  run("gpu", played());
  EXPECT_THAT(rows_of_trace("gpu"), IsSupersetOf({"upload", "compute", "download"}));
}

TEST_P(PruneRunOnAGpu, ABudgetThatItsWorkExceedsIsRefusedBeforeAnythingIsRead) {
  recipe_.resources.vram_budget_bytes = 4096;
  EXPECT_THROW(run("gpu", played()), PlanRefused);
  EXPECT_FALSE(fs::exists(dir_ / "gpu"));
}

INSTANTIATE_TEST_SUITE_P(Models, PruneRunOnAGpu, ::testing::Values("llama_fp32", "llama_bf16"),
                         [](const auto& model) { return std::string(model.param); });

}  // namespace
}  // namespace coppice
