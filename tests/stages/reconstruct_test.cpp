#include "stages/reconstruct.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "stages/calibrate.h"
#include "stages/ops/squared_error.h"
#include "stages/reconstruct/window_loss.h"
#include "tests/support/golden.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tiny_window.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::Contains;
using testing::Golden;
using ::testing::HasSubstr;
using testing::IsCloseTo;
using ::testing::IsEmpty;
using testing::IsIdenticalTo;
using testing::kAttention;
using testing::kBlock;
using testing::kMlp;
using testing::kWindows;
using testing::options_with;
using testing::run;
using testing::TinySpan;

void expect_same_bytes(const Variant& a, const Variant& b) {
  ASSERT_EQ(a.adapted.size(), b.adapted.size());
  for (const auto& [name, tensor] : a.adapted) {
    EXPECT_THAT(tensor, IsIdenticalTo(b.adapted.at(name))) << name;
  }
}

// ---- gradients ----

class GoldenGradient : public ::testing::TestWithParam<std::string> {};

TEST_P(GoldenGradient, EqualsTransformers) {
  const Golden golden("llama_fp32");
  const Architecture& architecture = golden.architecture();
  const Half half = GetParam() == "attention" ? Half::kAttention : Half::kMlp;
  const std::string prefix = "train." + GetParam() + ".";
  const RotaryTable rotary =
      make_rotary_table(architecture.rope, architecture.head_dim, 64, at::kFloat, at::kCPU);
  testing::MemoryBoundaries unused;
  SpanJob span{kBlock, architecture, {golden.block(0)}, at::kFloat, rotary, unused, {}, {}};
  BlockWeights weights = converted(architecture, span.dense[0], half, at::kFloat);
  const auto module = [](const LinearSpec& spec) {
    return spec.name.substr(spec.name.find('.') + 1);
  };
  for (auto& [role, linear] : weights.linears) {
    const std::string name = prefix + "mask." + module(architecture.linear(role));
    linear.weight = linear.weight.mul(golden.expected(name)).requires_grad_(true);
  }
  at::Tensor& gain = weights.norms.begin()->second.gain;
  gain.requires_grad_(true);

  const at::Tensor x = golden.expected(prefix + "x");
  const std::vector<int> lengths(static_cast<size_t>(x.size(0)), int(x.size(1)));
  const int first = half == Half::kAttention ? 0 : 1;
  const at::Tensor output =
      window_output(span, {first, first + 1}, {{0, weights}}, {x.flatten(0, 1), lengths});
  at::Tensor gradient = output.detach();
  const double elements = static_cast<double>(output.numel());
  const at::Tensor error = squared_error_gradient_(
      gradient, golden.expected(prefix + "target").flatten(0, 1), 2 / elements);
  output.backward(gradient);

  EXPECT_THAT((error / elements).to(at::kFloat), IsCloseTo(golden.expected(prefix + "loss")));
  EXPECT_THAT(gain.grad(), IsCloseTo(golden.expected(prefix + "grad.norm")));
  for (const auto& [role, linear] : weights.linears) {
    const std::string name = prefix + "grad." + module(architecture.linear(role));
    EXPECT_THAT(linear.weight.grad(), IsCloseTo(golden.expected(name))) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Halves, GoldenGradient, ::testing::Values("attention", "mlp"));

// ---- what a window does ----

struct Case {
  const char* name;
  HalfRange halves;
  at::ScalarType stored, compute;
};

class ReconstructWindow : public ::testing::TestWithParam<Case> {
 protected:
  TinySpan span_{kWindows, GetParam().stored, GetParam().compute};
};

TEST_P(ReconstructWindow, LowersTheHeldOutLossAndKeepsZerosExactly) {
  const WindowReport report = run(span_, GetParam().halves, options_with(1e-2, 4));
  EXPECT_THAT(report.fallback, IsEmpty());
  EXPECT_LT(report.validation_reconstructed, report.validation_pruned);
  EXPECT_LT(report.loss_reconstructed, report.loss_pruned);
  for (const auto& [name, mask] : span_.variant().masks) {
    const at::Tensor& weight = span_.variant().adapted.at(name);
    EXPECT_EQ(weight.scalar_type(), GetParam().stored);
    const at::Tensor pruned = weight.masked_select(mask.logical_not());
    // +0, not −0: dividing 1 by it gives +infinity everywhere.
    EXPECT_TRUE(pruned.to(at::kFloat).reciprocal().eq(INFINITY).all().item<bool>()) << name;
  }
}

TEST_P(ReconstructWindow, ReportedLossesAreThoseOfTheWrittenTensors) {
  const ReconstructOptions options = options_with(1e-2);
  const WindowReport report = run(span_, GetParam().halves, options);
  // A second window over the result starts where the first one ended.
  const WindowReport again = run(span_, GetParam().halves, options_with(0));
  EXPECT_EQ(again.validation_pruned, report.validation_reconstructed);
  EXPECT_EQ(again.loss_pruned, report.loss_reconstructed);
}

TEST_P(ReconstructWindow, TwoRunsGiveTheSameBytes) {
  TinySpan other(kWindows, GetParam().stored, GetParam().compute);
  ReconstructOptions options = options_with(1e-2);
  options.shuffle = true;
  run(span_, GetParam().halves, options);
  run(other, GetParam().halves, options);
  expect_same_bytes(span_.variant(), other.variant());
}

INSTANTIATE_TEST_SUITE_P(
    Windows, ReconstructWindow,
    ::testing::Values(Case{"attention_fp32", kAttention, at::kFloat, at::kFloat},
                      Case{"mlp_fp32", kMlp, at::kFloat, at::kFloat},
                      Case{"block_fp32", kBlock, at::kFloat, at::kFloat},
                      Case{"mlp_bf16_stored", kMlp, at::kBFloat16, at::kFloat},
                      Case{"block_bf16", kBlock, at::kBFloat16, at::kBFloat16},
                      Case{"attention_bf16_compute", kAttention, at::kFloat, at::kBFloat16}),
    [](const auto& test) { return test.param.name; });

TEST(Reconstruct, AWindowOfTwoBlocksTrainsBoth) {
  TinySpan span(kWindows, at::kFloat, at::kFloat, /*seed=*/1, /*num_blocks=*/2);
  const WindowReport report = run(span, {0, 4}, options_with(1e-2, 4));
  EXPECT_EQ(report.name, "2 blocks");
  EXPECT_LT(report.validation_reconstructed, report.validation_pruned);
  EXPECT_EQ(span.variant().trained.size(), 2 * (7 * 2 + 2));
  for (const auto& [name, mask] : span.variant().masks) {
    const at::Tensor pruned = span.variant().adapted.at(name).masked_select(mask.logical_not());
    EXPECT_FALSE(pruned.any().item<bool>()) << name;
  }
}

TEST(Reconstruct, TrainsWeightsBiasesAndGainsOfItsWindowOnly) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  run(span, kMlp, options_with(1e-2));
  EXPECT_THAT(span.variant().trained,
              ::testing::UnorderedElementsAre(
                  "model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.gate_proj.bias",
                  "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.bias",
                  "model.layers.0.mlp.down_proj.weight", "model.layers.0.mlp.down_proj.bias",
                  "model.layers.0.post_attention_layernorm.weight"));
}

TEST(Reconstruct, BiasesAndGainsStayWhereTheOptionsSaySo) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  ReconstructOptions options = options_with(1e-2);
  options.train_biases = options.train_norms = false;
  run(span, kMlp, options);
  EXPECT_THAT(span.variant().trained,
              ::testing::UnorderedElementsAre("model.layers.0.mlp.gate_proj.weight",
                                              "model.layers.0.mlp.up_proj.weight",
                                              "model.layers.0.mlp.down_proj.weight"));
}

TEST(Reconstruct, LinearWithoutAMaskTrainsWhole) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  span.variant().masks.erase(name);
  span.variant().adapted.erase(name);
  run(span, kMlp, options_with(1e-2));
  const at::Tensor change =
      span.variant().adapted.at(name) - span.job.dense[0].linears.at("down").weight;
  EXPECT_EQ(change.eq(0).sum().item<int64_t>(), 0);
}

TEST(Reconstruct, DenseWeightsAreLeftAsTheyWere) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const at::Tensor gain = span.job.dense[0].norms.at("before_mlp").gain.clone();
  const at::Tensor bias = span.job.dense[0].linears.at("up").bias.clone();
  run(span, kMlp, options_with(1e-2));
  EXPECT_THAT(span.job.dense[0].norms.at("before_mlp").gain, IsIdenticalTo(gain));
  EXPECT_THAT(span.job.dense[0].linears.at("up").bias, IsIdenticalTo(bias));
}

TEST(Reconstruct, AnnouncesEveryEpochAsItWillBeRead) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  run(span, kMlp, options_with(1e-2, 1));
  EXPECT_THAT(span.boundaries.announced, Contains(::testing::ElementsAre(0, 1, 2, 3, 4, 5)));
  EXPECT_THAT(span.boundaries.announced, Contains(::testing::ElementsAre(6, 7, 8)));
}

TEST(Reconstruct, TailBatchIsAStepOfItsOwn) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  ReconstructOptions options = options_with(1e-2, 3);
  options.batch_size = 4;  // 6 training windows: 4 + 2
  EXPECT_EQ(run(span, kMlp, options).steps, 6);
}

// ---- device memory ----

class ReconstructInHalves : public ::testing::TestWithParam<Loss> {};

TEST_P(ReconstructInHalves, TrainsTheSameWhereMemoryDoesForHalfABatch) {
  ReconstructOptions options = options_with(1e-2);
  options.loss = GetParam();
  options.batch_size = 4;  // the last batch of seven windows has three: one part is shorter
  TinySpan whole(kWindows, at::kFloat, at::kFloat), halves(kWindows, at::kFloat, at::kFloat);
  halves.boundaries.most_at_once = 2;
  const WindowReport of_whole = run(whole, kBlock, options);
  const WindowReport of_halves = run(halves, kBlock, options);
  EXPECT_EQ(of_whole.micro_batch, 0);
  EXPECT_EQ(of_halves.micro_batch, 2);
  EXPECT_EQ(of_halves.steps, of_whole.steps);
  EXPECT_EQ(of_halves.kept, "adamw");
  for (const auto& [name, tensor] : whole.variant().adapted) {
    EXPECT_THAT(halves.variant().adapted.at(name), IsCloseTo(tensor)) << name;
  }
}
INSTANTIATE_TEST_SUITE_P(Losses, ReconstructInHalves,
                         ::testing::Values(Loss::kMse, Loss::kCosine, Loss::kMseNormalized));

struct ComputedAgain {
  const char* name;
  Architecture architecture = testing::tiny_llama();
  size_t most_at_once = SIZE_MAX;
  Propagation propagation = Propagation::kDense;
};

class ReconstructWithActivationsComputedAgain : public ::testing::TestWithParam<ComputedAgain> {};

TEST_P(ReconstructWithActivationsComputedAgain, TrainsToTheSameBits) {
  const ComputedAgain& which = GetParam();
  const HalfRange all{0, 2 * int(which.architecture.num_blocks)};
  ReconstructOptions options = options_with(1e-2);
  options.batch_size = 4;
  options.propagation = which.propagation;
  TinySpan kept(which.architecture, kWindows, at::kFloat, at::kFloat);
  TinySpan again(which.architecture, kWindows, at::kFloat, at::kFloat);
  again.job.kept_activations = KeptActivations::kOfOneHalf;
  for (TinySpan* span : {&kept, &again}) {
    span->boundaries.most_at_once = which.most_at_once;
    span->boundaries.propagated[0] = span->boundaries.held[0];
  }
  const WindowReport of_kept = run(kept, all, options), of_again = run(again, all, options);
  EXPECT_EQ(of_again.validation_reconstructed, of_kept.validation_reconstructed);
  EXPECT_EQ(of_again.micro_batch, of_kept.micro_batch);
  EXPECT_EQ(of_again.kept, "adamw");
  for (const auto& [name, tensor] : kept.variant().adapted) {
    EXPECT_THAT(again.variant().adapted.at(name), IsIdenticalTo(tensor)) << name;
  }
}
INSTANTIATE_TEST_SUITE_P(
    Windows, ReconstructWithActivationsComputedAgain,
    ::testing::Values(ComputedAgain{"block"}, ComputedAgain{"two_blocks", testing::tiny_llama(2)},
                      ComputedAgain{"experts", testing::tiny_moe()},
                      ComputedAgain{"half_a_batch", testing::tiny_llama(2), 2},
                      ComputedAgain{.name = "sparse", .propagation = Propagation::kSparse}),
    [](const auto& which) { return std::string(which.param.name); });

TEST(Reconstruct, MemoryThatDoesNotDoForHalfABatchEitherEndsTheRun) {
  ReconstructOptions options = options_with(1e-2);
  options.batch_size = 4;
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.boundaries.most_at_once = 1;
  EXPECT_THROW(run(span, kBlock, options), c10::OutOfMemoryError);
  options.batch_size = 1;
  span.boundaries.most_at_once = 0;
  EXPECT_THROW(run(span, kBlock, options), c10::OutOfMemoryError);
}

// ---- least squares ----

ReconstructOptions solved_by(Solver solver) {
  ReconstructOptions options = options_with(1e-2, 2);
  options.solver = solver;
  return options;
}

/// Wider than deep: nothing of a window of few tokens generalises.
struct FittedSpan : TinySpan {
  explicit FittedSpan(at::ScalarType stored = at::kFloat) : TinySpan(60, stored, at::kFloat) {
    WindowJob whole{job, job.halves};
    const std::map<int, testing::Windows> held = boundaries.held;
    Calibrate({.statistics = Calibrate::Statistics::kGram, .held_out_fraction = 0.25}).run(whole);
    boundaries.held = held;
  }
};

TEST(Reconstruct, LeastSquaresLowersTheHeldOutLossWithoutAStep) {
  for (const at::ScalarType stored : {at::kFloat, at::kBFloat16}) {
    for (const HalfRange halves : {kAttention, kMlp, kBlock}) {
      FittedSpan span(stored);
      const WindowReport report = run(span, halves, solved_by(Solver::kLeastSquares));
      EXPECT_EQ(report.kept, "least_squares");
      EXPECT_EQ(report.steps, 0);
      EXPECT_LT(report.validation_fitted, report.validation_pruned);
      EXPECT_EQ(report.validation_reconstructed, report.validation_fitted);
      EXPECT_LT(report.loss_reconstructed, report.loss_pruned);
    }
  }
}

TEST(Reconstruct, LeastSquaresChangesOnlyWhatIsUnderAMask) {
  FittedSpan span;
  const std::string unmasked = "model.layers.0.mlp.up_proj.weight";
  span.variant().masks.erase(unmasked);
  span.variant().adapted.erase(unmasked);
  run(span, kMlp, solved_by(Solver::kLeastSquares));
  EXPECT_THAT(span.variant().trained,
              ::testing::UnorderedElementsAre("model.layers.0.mlp.gate_proj.weight",
                                              "model.layers.0.mlp.down_proj.weight"));
  for (const std::string& name : span.variant().trained) {
    const at::Tensor pruned =
        span.variant().adapted.at(name).masked_select(span.variant().masks.at(name).logical_not());
    EXPECT_TRUE(pruned.reciprocal().eq(INFINITY).all().item<bool>()) << name;  // +0
  }
}

TEST(Reconstruct, AdamWStartsWhereLeastSquaresEnded) {
  FittedSpan fitted, both;
  const double end = run(fitted, kMlp, solved_by(Solver::kLeastSquares)).validation_fitted;
  ReconstructOptions slowly = solved_by(Solver::kLeastSquaresAdamW);
  slowly.lr = 1e-5;
  const WindowReport report = run(both, kMlp, slowly);
  EXPECT_EQ(report.kept, "adamw");
  EXPECT_EQ(report.validation_fitted, end);
  EXPECT_LT(report.validation_reconstructed, end);
  EXPECT_GT(report.validation_reconstructed, 0.99 * end);
}

TEST(Reconstruct, LeastSquaresStaysWhereAdamWDoesHarm) {
  FittedSpan fitted, both;
  run(fitted, kMlp, solved_by(Solver::kLeastSquares));
  ReconstructOptions options = solved_by(Solver::kLeastSquaresAdamW);
  options.lr = 10;
  const WindowReport report = run(both, kMlp, options);
  EXPECT_EQ(report.kept, "least_squares");
  EXPECT_THAT(report.fallback, HasSubstr("AdamW"));
  expect_same_bytes(fitted.variant(), both.variant());
}

TEST(Reconstruct, PrunedWeightsStayWhereLeastSquaresDoesHarm) {
  FittedSpan span;
  for (auto& [name, statistics] : span.job.statistics) {  // of other inputs altogether
    statistics.gram = at::randn(statistics.gram.sizes());
    statistics.gram = statistics.gram.mm(statistics.gram.t());
  }
  const std::map<std::string, at::Tensor> before = span.variant().adapted;
  const WindowReport report = run(span, kMlp, solved_by(Solver::kLeastSquares));
  EXPECT_EQ(report.kept, "pruned");
  EXPECT_THAT(report.fallback, HasSubstr("least_squares"));
  EXPECT_THAT(span.variant().trained, IsEmpty());
  for (const auto& [name, tensor] : before) {
    EXPECT_THAT(span.variant().adapted.at(name), IsIdenticalTo(tensor));
  }
}

TEST(Reconstruct, NeedsGramMatricesOnlyForLeastSquares) {
  EXPECT_FALSE(contains(Reconstruct(solved_by(Solver::kAdamW)).needs(), Products::kGram));
  EXPECT_TRUE(contains(Reconstruct(solved_by(Solver::kLeastSquares)).needs(), Products::kGram));
}

// ---- do no harm ----

/// A window that must leave the variant as it was.
void expect_pruned_weights_stay(TinySpan& span, const ReconstructOptions& options,
                                const std::string& why, int retries) {
  const std::map<std::string, at::Tensor> before = span.variant().adapted;
  const WindowReport report = run(span, kMlp, options);
  EXPECT_THAT(report.fallback, HasSubstr(why));
  EXPECT_EQ(report.retries, retries);
  EXPECT_THAT(span.variant().trained, IsEmpty());
  ASSERT_EQ(span.variant().adapted.size(), before.size());
  for (const auto& [name, tensor] : before) {
    EXPECT_THAT(span.variant().adapted.at(name), IsIdenticalTo(tensor));
  }
}

TEST(Reconstruct, PrunedWeightsStayIfNothingBeatsThem) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  for (size_t i = 0; i < kWindows; ++i) {  // the pruned half is its own target
    BlockWeights pruned = span.job.dense[0];
    for (auto& [role, linear] : pruned.linears) {
      const std::string name = in_block(span.architecture, 0, span.architecture.linear(role).name);
      linear.weight = span.variant().adapted.at(name + ".weight");
    }
    const MicroBatch x{span.boundaries.held[1][i], {TinySpan::kSeqlen}};
    span.boundaries.held[2][i] = mlp_half(span.architecture, pruned, x);
  }
  // Rounding differs between batches of one and of two: a rate that cannot help but harm.
  expect_pruned_weights_stay(span, options_with(1e-2), "the held-out loss became", 0);
}

TEST(Reconstruct, StepsBelowTheSpacingOfTheStoredDtypeAreNoImprovement) {
  TinySpan span(kWindows, at::kBFloat16, at::kFloat);
  expect_pruned_weights_stay(span, options_with(1e-9), "the held-out loss became", 0);
}

TEST(Reconstruct, NanInATrainingTargetIsTriedThreeTimesThenLeft) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.boundaries.held[2][4][0][0] = std::numeric_limits<double>::quiet_NaN();
  expect_pruned_weights_stay(span, options_with(1e-2), "not finite at rate 0.0025", 2);
}

TEST(Reconstruct, NanInAHeldOutTargetCannotBeJudged) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.boundaries.held[2][8][0][0] = std::numeric_limits<double>::quiet_NaN();
  expect_pruned_weights_stay(span, options_with(1e-2), "pruned weights is not finite", 0);
}

TEST(Reconstruct, RateThatOverflowsIsLeft) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  expect_pruned_weights_stay(span, options_with(1e37), "not finite", 2);
}

/// The first targets read in training are NaN, for `num_bad` reads.
class NanAtFirst : public testing::MemoryBoundaries {
 public:
  int num_bad = 0;

 private:
  class Source : public testing::MemorySource {
   public:
    Source(const testing::Windows& windows, NanAtFirst& owner)
        : MemorySource(windows, at::kFloat, owner.announced, SIZE_MAX), owner_(owner) {}
    MicroBatch read(std::span<const int> windows) override {
      MicroBatch batch = MemorySource::read(windows);
      const bool is_training = owner_.announced.back().size() == 6;
      if (is_training && owner_.num_bad > 0 && owner_.num_bad-- > 0) batch.hidden.fill_(NAN);
      return batch;
    }

   private:
    NanAtFirst& owner_;
  };
  std::unique_ptr<ActivationSource> source(Boundary boundary) override {
    return std::make_unique<Source>(held.at(boundary.half), *this);
  }
};

TEST(Reconstruct, RestartIsAFreshRunAtHalfTheRate) {
  TinySpan span(kWindows, at::kFloat, at::kFloat), fresh(kWindows, at::kFloat, at::kFloat);
  NanAtFirst boundaries;
  boundaries.held = span.boundaries.held;
  boundaries.num_bad = 1;
  SpanJob disturbed{
      kBlock, span.architecture, span.job.dense, at::kFloat, span.rotary, boundaries, {}, {}};
  WindowJob job{disturbed, kMlp, &span.variant()};
  Reconstruct(options_with(1e-2)).run(job);
  EXPECT_EQ(span.variant().windows.back().retries, 1);
  EXPECT_EQ(span.variant().windows.back().lr, 5e-3);
  run(fresh, kMlp, options_with(5e-3));
  expect_same_bytes(span.variant(), fresh.variant());
}

TEST(Reconstruct, OneCalibrationWindowIsTooFew) {
  TinySpan span(1, at::kFloat, at::kFloat);
  EXPECT_THROW(run(span, kMlp, options_with(1e-2)), std::invalid_argument);
}

// ---- experts ----

class ReconstructExperts : public ::testing::TestWithParam<Solver> {
 protected:
  // Inputs that can stand in for each other, and enough of them for every expert's fit.
  ReconstructExperts() {
    const at::Tensor directions = at::randn({6, span_.architecture.hidden});
    for (at::Tensor& x : span_.boundaries.held[1]) {
      x = at::randn({TinySpan::kSeqlen, 6}).mm(directions);
    }
    testing::starve_the_last_expert(span_);
    for (auto& [name, tensor] : span_.variant().adapted) pruned_[name] = tensor.clone();
  }
  WindowReport reconstruct() {
    WindowJob job{span_.job, kMlp, &span_.variant()};
    Calibrate({.statistics = Calibrate::Statistics::kGram, .held_out_fraction = 0.25}).run(job);
    ReconstructOptions options = options_with(1e-2, 4);
    options.solver = GetParam();
    return run(span_, kMlp, options);
  }

  TinySpan span_{testing::tiny_moe(), 5 * kWindows, at::kFloat, at::kFloat};
  std::map<std::string, at::Tensor> pruned_;
};

TEST_P(ReconstructExperts, ThoseWithTokensGainAndOneWithoutStaysAsItWasPruned) {
  const WindowReport report = reconstruct();
  EXPECT_NE(report.kept, "pruned") << report.fallback;
  EXPECT_LT(report.validation_reconstructed, report.validation_pruned);
  for (const char* part : {"gate", "up", "down"}) {
    const auto weight = [&](int expert) {
      return "model.layers.0.mlp.experts." + std::to_string(expert) + "." + part + "_proj.weight";
    };
    EXPECT_THAT(span_.variant().adapted.at(weight(4)), IsIdenticalTo(pruned_.at(weight(4))));
    EXPECT_FALSE(span_.variant().adapted.at(weight(0)).equal(pruned_.at(weight(0))));
  }
}

TEST_P(ReconstructExperts, RoutersAreNeverTrained) {
  reconstruct();
  EXPECT_FALSE(span_.variant().adapted.contains("model.layers.0.mlp.gate.weight"));
  EXPECT_THAT(span_.variant().trained, ::testing::Not(Contains("model.layers.0.mlp.gate.weight")));
}

INSTANTIATE_TEST_SUITE_P(Solvers, ReconstructExperts,
                         ::testing::Values(Solver::kAdamW, Solver::kLeastSquares,
                                           Solver::kLeastSquaresAdamW));

}  // namespace
}  // namespace coppice
