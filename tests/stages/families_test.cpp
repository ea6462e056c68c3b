// Every stage on a block of every golden checkpoint: what a family has otherwise, no stage trips
// over.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/randint.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "stages/calibrate.h"
#include "stages/model/block_forward.h"
#include "stages/model/stem.h"
#include "stages/prune.h"
#include "stages/reconstruct.h"
#include "stages/stage_table.h"  // windows_of
#include "tests/support/golden.h"
#include "tests/support/memory_boundaries.h"

namespace coppice {
namespace {

using testing::Golden;

constexpr int kWindows = 24;
constexpr int64_t kSeqlen = 13;  // longer than the windows of attention

/// A checkpoint's second block, on tokens embedded as the checkpoint does, moved by its first.
struct GoldenSpan {
  static constexpr HalfRange kBlock{2, 4};

  Golden golden;
  const Architecture& architecture = golden.architecture();
  RotaryTable rotary =
      make_rotary_table(architecture.rope, architecture.head_dim, kSeqlen, at::kFloat, at::kCPU);
  testing::MemoryBoundaries boundaries;
  SpanJob job{kBlock, architecture, {golden.block(1)}, at::kFloat, rotary, boundaries, {}, {}};

  explicit GoldenSpan(const std::string& folder) : golden(folder) {
    at::set_num_threads(1);  // waking a team costs more than these products
    at::manual_seed(7);
    const at::NoGradGuard no_graph;
    const auto weight = [&](const std::string& name) { return golden.weight(name).to(at::kFloat); };
    const StemWeights stem = gather_stem(architecture, weight);
    for (int window = 0; window < kWindows; ++window) {
      const at::Tensor ids = at::randint(architecture.vocab, {kSeqlen}, at::kLong);
      MicroBatch x{embed(architecture, stem, at::embedding(weight(architecture.embedding), ids)),
                   {int(kSeqlen)}};
      for (int half = 0; half < 2; ++half) {
        x.hidden = forward_half(half, architecture, golden.block(0), rotary, x);
      }
      boundaries.held[2].push_back(x.hidden);
    }
    boundaries.wanted = {3, 4};
    job.variants.emplace_back();
  }
  GoldenSpan(const GoldenSpan&) = delete;

  Variant& variant() { return job.variants.front(); }
  void run(const Stage& stage, HalfRange halves) {
    WindowJob window{job, halves, &variant()};
    stage.run(window);
  }
};

class Families : public ::testing::TestWithParam<std::tuple<std::string, WindowKind>> {
 protected:
  GoldenSpan span_{std::get<std::string>(GetParam())};

  void prune_and_reconstruct() {
    const WindowKind kind = std::get<WindowKind>(GetParam());
    ReconstructOptions options;
    options.window = {kind};
    options.lr = 3e-3;
    options.epochs = 4;
    options.validation_fraction = 0.25;
    span_.run(Calibrate({.statistics = Calibrate::Statistics::kSquares}), GoldenSpan::kBlock);
    for (const HalfRange& window : windows_of(GoldenSpan::kBlock, {kind})) {
      span_.run(Prune(PruneOptions{}), window);
      span_.run(Reconstruct(options), window);
    }
  }
};

TEST_P(Families, ReconstructionLowersTheHeldOutLossOfEveryWindow) {
  prune_and_reconstruct();
  ASSERT_FALSE(span_.variant().windows.empty());
  for (const WindowReport& window : span_.variant().windows) {
    EXPECT_EQ(window.kept, "adamw") << window.name << ": " << window.fallback;
    EXPECT_LT(window.validation_reconstructed, window.validation_pruned) << window.name;
  }
}

TEST_P(Families, EveryLinearIsHalfZerosAfterwards) {
  prune_and_reconstruct();
  for (const LinearSpec& spec : span_.architecture.linears) {
    const std::string name = in_block(span_.architecture, 1, spec.name) + ".weight";
    const at::Tensor& mask = span_.variant().masks.at(name);
    const at::Tensor& weight = span_.variant().adapted.at(name);
    EXPECT_EQ(weight.scalar_type(), span_.job.dense[0].linears.at(spec.role).weight.scalar_type());
    EXPECT_EQ(mask.logical_not().sum().item<int64_t>(), spec.in / 2 * spec.out) << name;
    EXPECT_EQ(weight.masked_select(mask.logical_not()).count_nonzero().item<int64_t>(), 0) << name;
  }
}

TEST_P(Families, BiasesAndNormsAreTrainedByName) {
  prune_and_reconstruct();
  std::vector<std::string> expected;
  for (const NamedShape& tensor : block_tensors(span_.architecture, 1)) {
    const bool is_router =
        span_.architecture.experts.count > 0 && tensor.name == router_tensor(span_.architecture, 1);
    if (!is_router) expected.push_back(tensor.name);
  }
  EXPECT_THAT(span_.variant().trained, ::testing::UnorderedElementsAreArray(expected));
}

class FamiliesByMatrix : public ::testing::TestWithParam<std::string> {};

TEST_P(FamiliesByMatrix, EveryLinearIsAWindowAndTheirErrorsFall) {
  GoldenSpan span(GetParam());
  ReconstructOptions options;
  options.window = {WindowKind::kMatrix};
  options.solver = Solver::kLeastSquaresAdamW;
  options.lr = 3e-3;
  options.validation_fraction = 0.25;
  const Calibrate calibrate(
      {.statistics = Calibrate::Statistics::kGram, .held_out_fraction = 0.25});
  span.run(calibrate, GoldenSpan::kBlock);
  for (const HalfRange& window : windows_of(GoldenSpan::kBlock, options.window)) {
    span.run(Prune(PruneOptions{}), window);
    span.run(Reconstruct(options), window);
  }
  EXPECT_EQ(span.variant().windows.size(), span.architecture.linears.size());
  double ratios = 0;
  for (const WindowReport& window : span.variant().windows) {
    ratios += window.validation_reconstructed / window.validation_pruned;
  }
  EXPECT_LT(ratios / double(span.variant().windows.size()), 0.95);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, FamiliesByMatrix,
                         ::testing::ValuesIn(testing::golden_folders()),
                         [](const auto& test) { return test.param; });

std::string case_name(const ::testing::TestParamInfo<std::tuple<std::string, WindowKind>>& test) {
  const auto& [folder, kind] = test.param;
  return folder + (kind == WindowKind::kBlock ? "_block" : "_halves");
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, Families,
                         ::testing::Combine(::testing::ValuesIn(testing::golden_folders()),
                                            ::testing::Values(WindowKind::kHalfBlock,
                                                              WindowKind::kBlock)),
                         case_name);

}  // namespace
}  // namespace coppice
