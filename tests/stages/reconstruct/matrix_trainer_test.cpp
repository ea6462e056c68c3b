#include "stages/reconstruct/matrix_trainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "stages/calibrate.h"
#include "stages/reconstruct/least_squares.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::IsCloseTo;
using ::testing::IsEmpty;
using testing::IsIdenticalTo;
using testing::TinySpan;

constexpr int kWindows = 8;
constexpr int kMany = 40;  // tokens enough that held-out ones gain, too
constexpr int kRank = 6;   // of inputs that can stand in for each other
const std::string kDown = "model.layers.0.mlp.down_proj";

ReconstructOptions options_with(double lr, int epochs = 4) {
  ReconstructOptions options;
  options.window = {WindowKind::kMatrix};
  options.lr = lr;
  options.epochs = epochs;
  options.validation_fraction = 0.25;
  return options;
}

/// Inputs of white noise would leave nothing to make up for: what is pruned is missed by nobody
/// else.
void correlate(TinySpan& span) {
  const at::Tensor directions = at::randn({kRank, span.architecture.hidden});
  for (int half = 0; half < 2; ++half) {
    for (at::Tensor& x : span.boundaries.held[half]) {
      x = at::randn({TinySpan::kSeqlen, kRank}).mm(directions).to(x.scalar_type());
    }
  }
}

std::vector<WindowReport> run(TinySpan& span, int half, const ReconstructOptions& options) {
  return MatrixTrainer(span.job, half, span.variant(), options, "matrices").run();
}

/// What the linear reads in the dense block, of calibration window `window`.
at::Tensor input_of(TinySpan& span, const std::string& role, size_t window) {
  const LinearSpec& spec = span.architecture.linear(role);
  const int half = spec.half == Half::kAttention ? 0 : 1;
  at::Tensor input;
  forward_half(half, span.architecture,
               converted(span.architecture, span.job.dense[0], spec.half, span.job.compute),
               span.rotary, {span.boundaries.held[half][window], {TinySpan::kSeqlen}},
               [&](const std::string& name, const at::Tensor& x) {
                 if (name == spec.input) input = x;
               });
  return input;
}

/// Mean square of the error of down_proj's raw output over windows [first, last).
double error_of_down(TinySpan& span, size_t first, size_t last) {
  const Linear& dense = span.job.dense[0].linears.at("down");
  const auto bias = span.variant().adapted.find(kDown + ".bias");
  double sum = 0, count = 0;
  for (size_t window = first; window < last; ++window) {
    const at::Tensor x = input_of(span, "down", window);
    const at::Tensor error =
        at::linear(x, span.variant().adapted.at(kDown + ".weight"),
                   bias == span.variant().adapted.end() ? dense.bias : bias->second) -
        at::linear(x, dense.weight, dense.bias);
    sum += error.square().sum().item<double>();
    count += double(error.numel());
  }
  return sum / count;
}

TEST(MatrixTrainer, EveryMatrixOfTheHalfIsAWindow) {
  TinySpan span(kMany, at::kFloat, at::kFloat);
  correlate(span);
  std::vector<std::string> names;
  for (const WindowReport& report : run(span, 0, options_with(1e-2))) {
    EXPECT_LT(report.validation_reconstructed, report.validation_pruned) << report.name;
    EXPECT_LT(report.loss_reconstructed, report.loss_pruned) << report.name;
    EXPECT_EQ(report.kept, "adamw");
    EXPECT_EQ(report.steps, 4 * 15);
    names.push_back(report.name);
  }
  EXPECT_THAT(names, ElementsAre("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                                 "self_attn.o_proj"));
}

TEST(MatrixTrainer, LossIsThatOfTheRawOutput) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const double pruned = error_of_down(span, 6, 8);
  const WindowReport report = run(span, 1, options_with(1e-2)).back();
  ASSERT_EQ(report.name, "mlp.down_proj");
  EXPECT_NEAR(report.validation_pruned, pruned, 1e-5 * pruned);
  const double trained = error_of_down(span, 6, 8);
  EXPECT_NEAR(report.validation_reconstructed, trained, 1e-4 * trained);
  EXPECT_NEAR(report.loss_reconstructed, error_of_down(span, 0, 2), 1e-4 * trained);
}

TEST(MatrixTrainer, OneStepIsAdamWOnTheMeanSquare) {
  TinySpan span(2, at::kFloat, at::kFloat);
  ReconstructOptions options = options_with(1e-3, 1);
  options.train_biases = false;
  const at::Tensor x = input_of(span, "down", 0);
  const at::Tensor before = span.variant().adapted.at(kDown + ".weight").clone();
  const at::Tensor mask = span.variant().masks.at(kDown + ".weight");
  const at::Tensor error = x.mm((before - span.job.dense[0].linears.at("down").weight).t());
  const at::Tensor gradient = 2 * error.t().mm(x) / double(error.numel());
  // The first step of AdamW from zero moments.
  const at::Tensor expected =
      before - 1e-3 * (gradient / (gradient.abs() + 1e-8)).masked_fill(mask.logical_not(), 0);
  const WindowReport report = run(span, 1, options).back();
  ASSERT_EQ(report.steps, 1);
  ASSERT_EQ(report.kept, "adamw");
  EXPECT_THAT(span.variant().adapted.at(kDown + ".weight"), IsCloseTo(expected));
}

TEST(MatrixTrainer, MatricesDoNotDependOnEachOther) {
  TinySpan together(kWindows, at::kFloat, at::kFloat), alone(kWindows, at::kFloat, at::kFloat);
  for (const std::string name : {"mlp.gate_proj", "mlp.up_proj"}) {
    alone.variant().masks.erase("model.layers.0." + name + ".weight");
  }
  run(together, 1, options_with(1e-2));
  EXPECT_EQ(run(alone, 1, options_with(1e-2)).size(), 1u);
  EXPECT_THAT(alone.variant().adapted.at(kDown + ".weight"),
              IsIdenticalTo(together.variant().adapted.at(kDown + ".weight")));
}

TEST(MatrixTrainer, ZerosStayAndNoNormIsTouched) {
  TinySpan span(kWindows, at::kBFloat16, at::kBFloat16);
  run(span, 1, options_with(1e-2));
  const at::Tensor& weight = span.variant().adapted.at(kDown + ".weight");
  EXPECT_EQ(weight.scalar_type(), at::kBFloat16);
  const at::Tensor pruned =
      weight.masked_select(span.variant().masks.at(kDown + ".weight").logical_not());
  EXPECT_TRUE(pruned.to(at::kFloat).reciprocal().eq(INFINITY).all().item<bool>());
  for (const std::string& name : span.variant().trained) {
    EXPECT_THAT(name, ::testing::Not(::testing::HasSubstr("norm")));
  }
}

TEST(MatrixTrainer, AMatrixWithoutAMaskIsLeftAlone) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.variant().masks.clear();
  EXPECT_THAT(run(span, 1, options_with(1e-2)), IsEmpty());
  EXPECT_THAT(span.variant().trained, IsEmpty());
}

TEST(MatrixTrainer, LeastSquaresIsTheClosedForm) {
  TinySpan span(kMany, at::kFloat, at::kFloat);
  correlate(span);
  ReconstructOptions options = options_with(1e-2);
  options.solver = Solver::kLeastSquares;
  WindowJob forward{span.job, span.job.halves};
  Calibrate({.statistics = Calibrate::Statistics::kGram, .held_out_fraction = 0.25}).run(forward);
  const at::Tensor expected = least_squares_as_written(
      span.job.dense[0].linears.at("down").weight, span.variant().masks.at(kDown + ".weight"),
      span.job.statistics.at("model.layers.0.mlp_units").gram, options.ridge);
  const WindowReport report = run(span, 1, options).back();
  EXPECT_EQ(report.kept, "least_squares");
  EXPECT_EQ(report.steps, 0);
  EXPECT_THAT(span.variant().adapted.at(kDown + ".weight"), IsIdenticalTo(expected));
}

TEST(MatrixTrainer, WhatGetsWorseKeepsItsPrunedWeights) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const at::Tensor before = span.variant().adapted.at(kDown + ".weight").clone();
  for (const WindowReport& report : run(span, 1, options_with(1e3))) {
    EXPECT_EQ(report.kept, "pruned");
    EXPECT_THAT(report.fallback, ::testing::HasSubstr("the held-out loss became"));
    EXPECT_EQ(report.validation_reconstructed, report.validation_pruned);
  }
  EXPECT_THAT(span.variant().adapted.at(kDown + ".weight"), IsIdenticalTo(before));
}

TEST(MatrixTrainer, WhatDivergesStartsAgainAtHalfTheRate) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  for (const WindowReport& report : run(span, 1, options_with(1e37))) {
    EXPECT_EQ(report.retries, 2) << report.name;
    EXPECT_EQ(report.lr, 1e37 / 4);
    EXPECT_EQ(report.kept, "pruned");
    EXPECT_THAT(report.fallback, ::testing::HasSubstr("not finite"));
  }
}

TEST(MatrixTrainer, TwoRunsGiveTheSameBytes) {
  TinySpan one(kWindows, at::kFloat, at::kFloat), other(kWindows, at::kFloat, at::kFloat);
  ReconstructOptions options = options_with(1e-2);
  options.shuffle = true;
  run(one, 1, options);
  run(other, 1, options);
  EXPECT_THAT(one.variant().adapted.at(kDown + ".weight"),
              IsIdenticalTo(other.variant().adapted.at(kDown + ".weight")));
}

TEST(MatrixTrainer, MixedPropagationAimsAtTheDenseModelsOwnOutput) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  for (const at::Tensor& x : span.boundaries.held[1]) {
    span.boundaries.propagated[1].push_back(x + 0.1);
  }
  for (auto& [name, mask] : span.variant().masks) mask.fill_(true);  // nothing is pruned
  for (const LinearSpec& spec : span.architecture.linears) {
    span.variant().adapted[in_block(span.architecture, 0, spec.name) + ".weight"] =
        span.job.dense[0].linears.at(spec.role).weight.clone();
  }
  ReconstructOptions options = options_with(1e-3);
  options.propagation = Propagation::kSparse;
  EXPECT_EQ(run(span, 1, options).back().validation_pruned, 0);
  options.propagation = Propagation::kMixed;
  EXPECT_GT(run(span, 1, options).back().validation_pruned, 0);
}

TEST(MatrixTrainer, AnExpertWithoutTokensIsAWindowThatStaysAsItWasPruned) {
  TinySpan span(testing::tiny_moe(), kMany, at::kFloat, at::kFloat);
  correlate(span);
  testing::starve_the_last_expert(span);
  WindowJob job{span.job, {1, 2}};
  Calibrate({.statistics = Calibrate::Statistics::kGram, .held_out_fraction = 0.25}).run(job);
  ReconstructOptions options = options_with(1e-2, 2);
  options.solver = Solver::kLeastSquaresAdamW;
  const std::vector<WindowReport> reports = run(span, 1, options);
  ASSERT_EQ(reports.size(), 15u);
  for (const WindowReport& report : reports) {
    const bool is_starved = report.name.find("experts.4.") != std::string::npos;
    EXPECT_EQ(report.kept == "pruned", is_starved) << report.name << ": " << report.fallback;
    EXPECT_EQ(report.fallback == "no held-out calibration token was routed to it", is_starved);
    EXPECT_TRUE(std::isfinite(report.validation_pruned));
    EXPECT_TRUE(std::isfinite(report.loss_reconstructed));
  }
}

}  // namespace
}  // namespace coppice
