// Windows whose removed units are folded into what stays, judged on held-out windows.
#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "stages/calibrate.h"
#include "stages/prune_units.h"
#include "stages/reconstruct.h"
#include "stages/reconstruct/keep_best.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::Contains;
using testing::IsIdenticalTo;
using testing::TinySpan;

constexpr int kWindows = 24;
constexpr HalfRange kBlock{0, 2};

ReconstructOptions options_with(Solver solver) {
  ReconstructOptions options;
  options.solver = solver;
  options.ridge = 0;
  options.validation_fraction = 0.25;
  options.lr = 1e-3;
  options.epochs = 3;
  return options;
}

/// Half of the neurons and heads removed, and all statistics gathered.
struct Span : TinySpan {
  explicit Span(Architecture described = testing::tiny_llama())
      : TinySpan(std::move(described), kWindows, at::kFloat, at::kFloat) {
    variant() = {};
    give_neurons_a_mean();
    Calibrate::Options calibrate;
    calibrate.statistics = Calibrate::Statistics::kGram;
    calibrate.wants_sums = true;
    calibrate.held_out_fraction = 0.25;
    WindowJob forward{job, kBlock, nullptr};
    Calibrate(calibrate).run(forward);
    PruneOptions prune;
    prune.method = PruneMethod::kWandaSp;
    prune.ffn_sparsity = prune.head_sparsity = 0.5;
    WindowJob window{job, kBlock, &variant()};
    PruneUnits(prune).run(window);
  }
  /// Those of random weights have none, and a bias could make up for nothing.
  void give_neurons_a_mean() {
    for (auto& [role, linear] : job.dense[0].linears) {
      if (role.starts_with("up") && linear.bias.defined()) linear.bias.add_(1);
    }
    for (size_t window = 0; window < kWindows; ++window) {
      const MicroBatch x{boundaries.held[1][window], {kSeqlen}};
      boundaries.held[2][window] = forward_half(1, architecture, job.dense[0], rotary, x);
    }
  }
  WindowReport reconstruct(Solver solver, HalfRange halves = kBlock) {
    WindowJob window{job, halves, &variant()};
    Reconstruct(options_with(solver)).run(window);
    return variant().windows.back();
  }
};

class FoldUnits : public ::testing::TestWithParam<HalfRange> {
 protected:
  WindowReport by(Solver solver) {
    Span span;
    return span.reconstruct(solver, GetParam());
  }
};

TEST_P(FoldUnits, HeldOutErrorFallsFromRemovalToBiasToLiarToTraining) {
  const WindowReport bias = by(Solver::kBias), liar = by(Solver::kLiar),
                     trained = by(Solver::kLiarAdamW);
  EXPECT_LT(bias.validation_reconstructed, bias.validation_pruned);
  EXPECT_LT(liar.validation_reconstructed, bias.validation_reconstructed);
  EXPECT_LT(trained.validation_reconstructed, liar.validation_reconstructed);
  EXPECT_EQ(bias.kept, "bias");
  EXPECT_EQ(liar.kept, "liar");
  EXPECT_EQ(trained.kept, "adamw");
  EXPECT_TRUE(std::isinf(bias.ridge));
  EXPECT_LE(liar.ridge, 1);
  EXPECT_GT(liar.ridge, 0);
}

INSTANTIATE_TEST_SUITE_P(Windows, FoldUnits,
                         ::testing::Values(HalfRange{0, 1}, HalfRange{1, 2}, kBlock));

bool names_trained(Span& span, const std::string& name) {
  const std::vector<std::string>& trained = span.variant().trained;
  return std::find(trained.begin(), trained.end(), name) != trained.end();
}

TEST(FoldedUnits, ConsumersAndTheirBiasesChangeAndNothingElse) {
  Span pruned, folded;
  folded.reconstruct(Solver::kLiar);
  const auto& before = pruned.variant().adapted;
  for (const auto& [name, tensor] : folded.variant().adapted) {
    const bool is_consumer =
        name.find("o_proj") != std::string::npos || name.find("down_proj") != std::string::npos;
    if (!is_consumer) {
      EXPECT_THAT(tensor, IsIdenticalTo(before.at(name))) << name;
      EXPECT_EQ(names_trained(folded, name), names_trained(pruned, name)) << name;
    } else {
      EXPECT_THAT(folded.variant().trained, Contains(name));
    }
  }
  EXPECT_THAT(folded.variant().trained, Contains("model.layers.0.mlp.down_proj.bias"));
}

TEST(FoldedUnits, WhatWasRemovedStaysZeroThroughTraining) {
  Span span;
  span.reconstruct(Solver::kLiarAdamW);
  for (const auto& [name, mask] : span.variant().masks) {
    const at::Tensor removed = span.variant().adapted.at(name).masked_select(mask.logical_not());
    EXPECT_TRUE(removed.reciprocal().eq(INFINITY).all().item<bool>()) << name;  // +0
  }
}

TEST(FoldedUnits, WithoutBiasesTheRegressionDoesWithoutAnIntercept) {
  Architecture architecture = testing::tiny_llama();
  for (LinearSpec& linear : architecture.linears) linear.has_bias = false;
  Span span(architecture);
  const WindowReport report = span.reconstruct(Solver::kLiar);
  EXPECT_EQ(report.kept, "liar");
  EXPECT_LT(report.validation_reconstructed, report.validation_pruned);
  EXPECT_LE(report.ridge, 1);  // an infinite one would be no change
}

TEST(FoldedUnits, OneRidgeThatIsGivenIsTaken) {
  Span span;
  ReconstructOptions options = options_with(Solver::kLiar);
  options.ridge = 0.05;
  WindowJob window{span.job, kBlock, &span.variant()};
  Reconstruct(options).run(window);
  EXPECT_EQ(span.variant().windows.back().ridge, 0.05);
}

TEST(FoldedUnits, ExpertsAreFolded) {
  Span span(testing::tiny_moe());
  const WindowReport report = span.reconstruct(Solver::kLiar, {1, 2});
  EXPECT_EQ(report.kept, "liar");
  EXPECT_LT(report.validation_reconstructed, report.validation_pruned);
}

TEST(FoldedUnits, NeedGramMatricesAndSums) {
  EXPECT_TRUE(contains(Reconstruct(options_with(Solver::kLiar)).needs(),
                       Products::kGram | Products::kSums));
  EXPECT_FALSE(contains(Reconstruct(options_with(Solver::kLeastSquares)).needs(), Products::kSums));
}

TEST(FoldedUnits, ARidgeToBeFoundIsTriedForLeastSquaresToo) {
  EXPECT_EQ(ridges_of(options_with(Solver::kLeastSquares)).size(), 3u);
  EXPECT_EQ(ridges_of(options_with(Solver::kAdamW)).size(), 0u);
}

}  // namespace
}  // namespace coppice
