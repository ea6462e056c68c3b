#include "stages/allocation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Pointwise;
using testing::TinySpan;

/// Statistics of every input: column j of `tokens` tokens has a norm of √tokens · (j + 1).
void give_statistics(TinySpan& span, int64_t tokens) {
  for (const LinearSpec& linear : span.architecture.linears) {
    InputStatistics& statistics = span.job.statistics[in_block(span.architecture, 0, linear.input)];
    statistics.tokens = tokens;
    statistics.sum_of_squares =
        at::ones({linear.in}, at::kDouble).cumsum(0).square() * double(tokens);
  }
}

TEST(OutlierRatio, CountsScoresAboveMTimesTheMeanOverTheWholeBlock) {
  TinySpan span(2, at::kFloat, at::kFloat);
  give_statistics(span, 14);
  std::vector<at::Tensor> scores;
  for (const LinearSpec& linear : span.architecture.linears) {
    const at::Tensor norms = at::ones({linear.in}, at::kDouble).cumsum(0);
    scores.push_back(
        (span.job.dense[0].linears.at(linear.role).weight.to(at::kDouble).abs() * norms).flatten());
  }
  const at::Tensor all = at::cat(scores);
  PruneOptions options;
  options.owl_m = 2.5;
  const double expected = all.gt(all.mean() * 2.5).to(at::kDouble).mean().item<double>();
  ASSERT_GT(expected, 0.01);
  EXPECT_DOUBLE_EQ(outlier_ratio(span.job, 0, options).value(), expected);
}

TEST(OutlierRatio, LooksAtTargetsOnly) {
  TinySpan span(2, at::kFloat, at::kFloat);
  give_statistics(span, 14);
  at::Tensor& up = span.job.dense[0].linears.at("up").weight;
  up.fill_(1e-6);
  up[0][0] = 1;  // the one outlier of this linear
  PruneOptions options;
  options.targets = {"up_proj"};
  EXPECT_DOUBLE_EQ(outlier_ratio(span.job, 0, options).value(), 1.0 / double(up.numel()));
  options.targets = {"nothing"};
  EXPECT_FALSE(outlier_ratio(span.job, 0, options).has_value());
}

TEST(OutlierRatio, ExpertsThatNoTokenReachedDoNotCount) {
  TinySpan span(2, at::kFloat, at::kFloat);
  give_statistics(span, 14);
  PruneOptions options;
  options.owl_m = 2.5;
  options.targets = {"q_proj", "k_proj", "v_proj"};
  const double alone = outlier_ratio(span.job, 0, options).value();
  options.targets.emplace_back("down_proj");
  span.job.statistics[in_block(span.architecture, 0, "mlp_units")].tokens = 0;
  EXPECT_EQ(outlier_ratio(span.job, 0, options).value(), alone);
}

TEST(OwlSparsities, MoreOutliersKeepMoreWithinTwiceLambda) {
  // The authors' code on these ratios: ratios stretched to [0, 0.16], less their mean of 0.056.
  EXPECT_THAT(owl_sparsities({0.01, 0.02, 0.05, 0.01, 0.03}, 0.7, 0.08),
              Pointwise(DoubleNear(1e-12), {0.756, 0.716, 0.596, 0.756, 0.676}));
}

TEST(OwlSparsities, MeanIsTheSparsityThatWasAskedFor) {
  const std::vector<double> sparsities = owl_sparsities({0.3, 0.1, 0.4, 0.15}, 0.5, 0.1);
  EXPECT_NEAR(std::accumulate(sparsities.begin(), sparsities.end(), 0.0) / 4, 0.5, 1e-12);
}

TEST(OwlSparsities, AllAlikeAreAllTheSame) {
  EXPECT_THAT(owl_sparsities({0.02, 0.02}, 0.6, 0.08), ElementsAre(0.6, 0.6));
  EXPECT_THAT(owl_sparsities({}, 0.6, 0.08), ElementsAre());
}

}  // namespace
}  // namespace coppice
