// Every recipe's stages on a device that is not the CPU: nothing of theirs is left behind on the
// host, and a step of training asks the device for nothing.
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>

#include "stages/stage_table.h"
#include "tests/support/move_to.h"
#include "tests/support/played_backend.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;
using testing::TinySpan;

constexpr int kWindows = 8;

struct Case {
  std::string name;
  std::function<void(PruneOptions&, ReconstructOptions&)> change;
  bool has_experts = false;
  bool is_chaotic = false;  // one bit decides which weight goes, and that all others of its row
};

void PrintTo(const Case& which, std::ostream* out) { *out << which.name; }

/// The whole of what a job does with a span: dense forward, then every window by every stage.
void work(TinySpan& span, const PruneOptions& prune, const ReconstructOptions& reconstruct) {
  Variant& variant = span.variant();
  variant.prune = prune;
  variant.reconstruct = reconstruct;
  variant.masks.clear();
  variant.adapted.clear();
  span.boundaries.wanted = {1, 2};
  span.boundaries.propagated[0] = span.boundaries.held[0];
  if (const auto forward = forward_stage(prune, reconstruct)) {
    WindowJob job{span.job, span.job.halves, nullptr};
    forward->run(job);
  }
  const auto stages = adapt_stages(prune, reconstruct);
  for (const HalfRange& halves : windows_of(span.job.halves, reconstruct.window)) {
    WindowJob job{span.job, halves, &variant};
    for (const auto& stage : stages) stage->run(job);
  }
}

std::unique_ptr<TinySpan> worked(const Case& which, at::Device device, int windows = kWindows) {
  PruneOptions prune;
  ReconstructOptions reconstruct;
  reconstruct.lr = 1e-3;
  reconstruct.validation_fraction = 0.25;
  which.change(prune, reconstruct);
  auto span =
      std::make_unique<TinySpan>(which.has_experts ? testing::tiny_moe() : testing::tiny_llama(),
                                 windows, at::kFloat, at::kFloat);
  testing::move(*span, device);
  testing::take_host_waits();
  work(*span, prune, reconstruct);
  return span;
}

class PlayedDevice : public ::testing::TestWithParam<Case> {};

TEST_P(PlayedDevice, AdaptsAsTheCpuDoes) {
  const auto expected = worked(GetParam(), at::kCPU);
  const auto found = worked(GetParam(), testing::played_device());
  ASSERT_EQ(found->variant().adapted.size(), expected->variant().adapted.size());
  for (const auto& [name, tensor] : expected->variant().adapted) {
    const at::Tensor& adapted = found->variant().adapted.at(name);
    EXPECT_EQ(adapted.device(), testing::played_device()) << name;
    const at::Tensor on_host = adapted.to(at::kCPU);
    if (GetParam().is_chaotic) {
      EXPECT_GT(on_host.eq(0).eq(tensor.eq(0)).to(at::kFloat).mean().item<float>(), 0.9) << name;
    } else {
      EXPECT_THAT(on_host, IsCloseTo(tensor)) << name;
    }
  }
}

TEST_P(PlayedDevice, WaitsForTheHostAsOftenHoweverManyStepsItTakes) {
  const auto waits_for = [](int windows) {
    worked(GetParam(), testing::played_device(), windows);
    int sum = 0;
    for (const auto& [operation, count] : testing::take_host_waits()) {
      // How many tokens go to each expert decides the shapes of what follows.
      if (GetParam().has_experts && operation == "copy to the host") continue;
      sum += count;
    }
    return sum;
  };
  // What training improved is judged once more.
  EXPECT_LE(waits_for(3 * kWindows), waits_for(kWindows) + 2);
}

// A whole model that lies there, forward and back, and its evaluation.
TEST(PlayedRetrainer, RetrainsAsTheCpuDoes) {
  const auto validation = [](at::Device device) {
    ResidentModel model = testing::tiny_pruned_model();
    for (auto& [name, tensor] : model.tensors) tensor = tensor.to(device);
    Retrainer trainer(model, testing::counting_text(12, 7).to(device),
                      testing::tiny_retrain_options());
    testing::finish(trainer);
    for (const auto& [name, tensor] : trainer.result(0)) EXPECT_EQ(tensor.device(), device) << name;
    return trainer.progress().validations.back();
  };
  const double expected = validation(at::kCPU);
  EXPECT_NEAR(validation(testing::played_device()), expected, 1e-3 * expected);
}

Case of_method(std::string name, PruneMethod method) {
  return {std::move(name), [method](PruneOptions& prune, ReconstructOptions&) {
            prune.method = method;
            prune.ffn_sparsity = prune.head_sparsity = 0.5;
          }};
}

Case of_solver(std::string name, PruneMethod method, Solver solver) {
  return {std::move(name), [=](PruneOptions& prune, ReconstructOptions& reconstruct) {
            prune.method = method;
            prune.ffn_sparsity = prune.head_sparsity = 0.5;
            reconstruct.solver = solver;
          }};
}

Case of_window(std::string name, WindowKind window, Propagation propagation, Loss loss) {
  return {std::move(name), [=](PruneOptions&, ReconstructOptions& reconstruct) {
            reconstruct.window = {window};
            reconstruct.propagation = propagation;
            reconstruct.loss = loss;
          }};
}

INSTANTIATE_TEST_SUITE_P(
    Recipes, PlayedDevice,
    ::testing::Values(
        of_method("magnitude", PruneMethod::kMagnitude), of_method("random", PruneMethod::kRandom),
        of_method("wanda", PruneMethod::kWanda), of_method("ria", PruneMethod::kRia),
        Case{.name = "sparsegpt",
             .change = of_method("", PruneMethod::kSparseGpt).change,
             .is_chaotic = true},
        of_method("random_sp", PruneMethod::kRandomSp),
        of_method("magnitude_sp", PruneMethod::kMagnitudeSp),
        of_method("wanda_sp", PruneMethod::kWandaSp), of_method("flap", PruneMethod::kFlap),
        Case{"two_of_four",
             [](PruneOptions& prune, ReconstructOptions&) {
               prune.pattern = {2, 4};
               prune.ignore.emplace_back("re:.*down_proj.*");  // 33 columns
             }},
        of_solver("least_squares", PruneMethod::kWanda, Solver::kLeastSquares),
        of_solver("least_squares_adamw", PruneMethod::kWanda, Solver::kLeastSquaresAdamW),
        of_solver("bias", PruneMethod::kWandaSp, Solver::kBias),
        of_solver("liar", PruneMethod::kWandaSp, Solver::kLiar),
        of_solver("liar_adamw", PruneMethod::kFlap, Solver::kLiarAdamW),
        of_window("only_pruned", WindowKind::kNone, Propagation::kDense, Loss::kMse),
        of_window("matrices", WindowKind::kMatrix, Propagation::kDense, Loss::kMse),
        of_window("blocks", WindowKind::kBlock, Propagation::kDense, Loss::kMseNormalized),
        of_window("sparse", WindowKind::kHalfBlock, Propagation::kSparse, Loss::kCosine),
        of_window("mixed", WindowKind::kBlock, Propagation::kMixed, Loss::kMse),
        Case{"experts", [](PruneOptions&, ReconstructOptions&) {}, true},
        Case{"similarity",
             [](PruneOptions& prune, ReconstructOptions& reconstruct) {
               prune.method = PruneMethod::kSimilarity;
               prune.removed_halves = {1};
               reconstruct.propagation = Propagation::kMixed;
             }}),
    [](const auto& which) { return which.param.name; });

}  // namespace
}  // namespace coppice
