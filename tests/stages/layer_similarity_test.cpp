// Cosines beside a plain loop, and which layers go for them.
#include "stages/layer_similarity.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>

#include <cmath>

#include "stages/calibrate.h"
#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::TinySpan;
using testing::Windows;

/// Σ over tokens, in doubles.
double cosines(const at::Tensor& entering, const at::Tensor& leaving) {
  double sum = 0;
  for (int64_t token = 0; token < entering.size(0); ++token) {
    double xx = 0, yy = 0, xy = 0;
    for (int64_t i = 0; i < entering.size(1); ++i) {
      const double x = entering[token][i].item<double>(), y = leaving[token][i].item<double>();
      xx += x * x;
      yy += y * y;
      xy += x * y;
    }
    sum += xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : xx == yy ? 1 : 0;
  }
  return sum;
}

double mean_of_cosines(const Windows& entering, const Windows& leaving) {
  double sum = 0;
  for (size_t window = 0; window < entering.size(); ++window) {
    sum += cosines(entering[window], leaving[window]);
  }
  return sum / double(entering.size() * TinySpan::kSeqlen);
}

TEST(SumOfCosines, IsThatOfAPlainLoop) {
  at::manual_seed(4);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const at::Tensor x = at::randn({9, 33}).to(dtype), y = (x + at::randn({9, 33})).to(dtype);
    const at::Tensor sum = sum_of_cosines(x, y);
    EXPECT_EQ(sum.scalar_type(), at::kDouble);
    EXPECT_NEAR(sum.item<double>(), cosines(x, y), 1e-5);
  }
}

TEST(SumOfCosines, ZerosThatStayAreTheSameAndZerosThatComeAreNot) {
  at::Tensor x = at::randn({3, 5}), y = at::randn({3, 5});
  x[0].zero_();
  y[0].zero_();  // 1
  x[1].zero_();  // 0
  y[2].zero_();  // 0
  EXPECT_EQ(sum_of_cosines(x, y).item<double>(), 1);
}

TEST(SumOfCosines, TokensAsSmallAsTheirProductCannotBeStillHaveADirection) {
  const at::Tensor x = at::randn({4, 5}).abs_().add_(1);
  EXPECT_NEAR(sum_of_cosines(x * 1e-15, x * 1e-15).item<double>(), 4, 1e-5);
  EXPECT_NEAR(sum_of_cosines(x * 1e-18, x * -1e18).item<double>(), -4, 1e-5);
}

TEST(Similarities, OfEveryBlockAreThoseOfTheDenseActivations) {
  TinySpan span(3, at::kFloat, at::kFloat, 1, /*num_blocks=*/2);
  WindowJob job{span.job, span.job.halves};
  Calibrate({.wants_similarities = true}).run(job);
  ASSERT_EQ(span.job.similarities.size(), 2);
  for (const auto& [block, similarities] : span.job.similarities) {
    const Windows& entering = span.boundaries.held[2 * block];
    const Windows& between = span.boundaries.held[2 * block + 1];
    const Windows& leaving = span.boundaries.held[2 * block + 2];
    EXPECT_NEAR(similarities.attention, mean_of_cosines(entering, between), 1e-6);
    EXPECT_NEAR(similarities.mlp, mean_of_cosines(between, leaving), 1e-6);
    EXPECT_NEAR(similarities.block, mean_of_cosines(entering, leaving), 1e-6);
  }
}

TEST(Similarities, AreMeasuredWhereSomebodyAsks) {
  TinySpan span(2, at::kFloat, at::kFloat);
  WindowJob job{span.job, span.job.halves};
  Calibrate({}).run(job);
  EXPECT_THAT(span.job.similarities, IsEmpty());
}

// ---- the choice ----

PruneOptions options_with(LayerUnits units, double share) {
  PruneOptions options;
  options.method = PruneMethod::kSimilarity;
  options.layer_units = units;
  options.layer_sparsity = share;
  return options;
}

const std::vector<LayerSimilarities> kFour = {{.attention = 0.1, .mlp = 0.8, .block = 0.5},
                                              {.attention = 0.9, .mlp = 0.3, .block = 0.7},
                                              {.attention = 0.6, .mlp = 0.7, .block = 0.9},
                                              {.attention = 0.2, .mlp = 0.4, .block = 0.6}};

TEST(MostSimilarHalves, AreOfTheLayersThatAreAskedFor) {
  const auto chosen = [](LayerUnits units, double share) {
    return most_similar_halves(kFour, options_with(units, share));
  };
  EXPECT_THAT(chosen(LayerUnits::kBlocks, 0.25), ElementsAre(4, 5));
  EXPECT_THAT(chosen(LayerUnits::kBlocks, 0.5), ElementsAre(2, 3, 4, 5));
  EXPECT_THAT(chosen(LayerUnits::kAttention, 0.5), ElementsAre(2, 4));
  EXPECT_THAT(chosen(LayerUnits::kMlp, 0.5), ElementsAre(1, 5));
  EXPECT_THAT(chosen(LayerUnits::kSublayers, 0.375), ElementsAre(1, 2, 5));
}

TEST(MostSimilarHalves, AreAsManyAsTheNearestNumberAndOneAtLeast) {
  const auto count = [](double share) {
    return num_removed_layers(options_with(LayerUnits::kBlocks, share), 30);
  };
  EXPECT_EQ(count(0.001), 1);
  EXPECT_EQ(count(0.1), 3);
  EXPECT_EQ(count(0.14), 4);
  EXPECT_EQ(num_removed_layers(options_with(LayerUnits::kSublayers, 0.1), 30), 6);
  EXPECT_EQ(num_layers(LayerUnits::kSublayers, 30), 60);
  EXPECT_EQ(num_layers(LayerUnits::kMlp, 30), 30);
}

TEST(MostSimilarHalves, OfEqualOnesTheLaterGo) {
  const std::vector<LayerSimilarities> equal(4, {0.5, 0.5, 0.5});
  EXPECT_THAT(most_similar_halves(equal, options_with(LayerUnits::kBlocks, 0.5)),
              ElementsAre(4, 5, 6, 7));
  EXPECT_THAT(most_similar_halves(equal, options_with(LayerUnits::kSublayers, 0.375)),
              ElementsAre(5, 6, 7));
}

TEST(RemovedBlocks, AreThoseOfWhichBothHalvesGo) {
  PruneOptions options = options_with(LayerUnits::kSublayers, 0.5);
  options.removed_halves = {0, 2, 3, 5, 6, 7};
  EXPECT_THAT(removed_blocks(options), ElementsAre(1, 3));
  EXPECT_TRUE(is_removed(options, 5));
  EXPECT_FALSE(is_removed(options, 4));
}

}  // namespace
}  // namespace coppice
