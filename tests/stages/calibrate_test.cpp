#include "stages/calibrate.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <limits>

#include "stages/errors.h"
#include "stages/model/norm.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::IsCloseTo;
using testing::IsIdenticalTo;
using ::testing::Key;
using testing::TinySpan;
using ::testing::UnorderedElementsAre;

constexpr int kWindows = 3;

void run(TinySpan& span, Calibrate::Statistics statistics = Calibrate::Statistics::kSquares) {
  WindowJob job{span.job, span.job.halves};
  Calibrate({.statistics = statistics}).run(job);
}

std::string message_of(TinySpan& span) {
  try {
    run(span);
  } catch (const NumericalError& error) {
    return error.what();
  }
  return "no NumericalError";
}

TEST(Calibrate, WritesTheBoundariesSomebodyAsksFor) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const testing::Windows expected = span.boundaries.held[2];
  span.boundaries.held.erase(1);
  span.boundaries.held.erase(2);
  span.boundaries.wanted = {2};
  run(span);
  EXPECT_THAT(span.boundaries.held, UnorderedElementsAre(Key(0), Key(2)));
  ASSERT_EQ(span.boundaries.held[2].size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_THAT(span.boundaries.held[2][i], IsIdenticalTo(expected[i]));
  }
}

TEST(Calibrate, ThePropagatedStreamGivesStatisticsAndNoBoundary) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.boundaries.propagated[1] = span.boundaries.held[1];
  for (at::Tensor& x : span.boundaries.propagated[1]) x = x.mul(3);
  span.boundaries.wanted = {2};
  span.boundaries.held.erase(2);
  span.job.statistics["left from before"] = {};
  WindowJob job{span.job, {1, 2}};
  Calibrate({.statistics = Calibrate::Statistics::kSquares, .stream = Stream::kPropagated})
      .run(job);
  EXPECT_FALSE(span.boundaries.held.contains(2));
  EXPECT_FALSE(span.boundaries.propagated.contains(2));
  EXPECT_THAT(span.job.statistics,
              UnorderedElementsAre(Key("model.layers.0.mlp_in"), Key("model.layers.0.mlp_units")));
  const auto& weights = span.job.dense[0];
  at::Tensor squares = at::zeros({span.architecture.hidden}, at::kDouble);
  for (const at::Tensor& x : span.boundaries.propagated[1]) {
    const at::Tensor normed =
        weights.norms.at("before_mlp").gain * rms_normalize(x, span.architecture.norm_epsilon);
    squares += normed.to(at::kDouble).square().sum(0);
  }
  EXPECT_THAT(span.job.statistics.at("model.layers.0.mlp_in").sum_of_squares.to(at::kFloat),
              IsCloseTo(squares.to(at::kFloat)));
}

TEST(Calibrate, StatisticsAreSquaresOfWhatTheLinearsRead) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  run(span);
  EXPECT_THAT(
      span.job.statistics,
      UnorderedElementsAre(Key("model.layers.0.attention_in"), Key("model.layers.0.attention_out"),
                           Key("model.layers.0.mlp_in"), Key("model.layers.0.mlp_units")));
  at::Tensor sum = at::zeros({20}, at::TensorOptions(at::kDouble));
  for (const at::Tensor& x : span.boundaries.held[0]) {
    const at::Tensor normed = span.job.dense[0].norms.at("before_attention").gain *
                              rms_normalize(x, span.architecture.norm_epsilon);
    sum.add_(normed.to(at::kDouble).square().sum(0));
  }
  const InputStatistics& statistics = span.job.statistics.at("model.layers.0.attention_in");
  EXPECT_EQ(statistics.tokens, kWindows * TinySpan::kSeqlen);
  EXPECT_THAT(statistics.sum_of_squares.to(at::kFloat), IsCloseTo(sum.to(at::kFloat)));
}

TEST(Calibrate, GramMatricesAreOfTheWindowsThatAreNotHeldOut) {
  for (const double fraction : {0.0, 0.3}) {  // of three windows: none, one
    TinySpan span(kWindows, at::kFloat, at::kFloat);
    WindowJob job{span.job, span.job.halves};
    Calibrate({.statistics = Calibrate::Statistics::kGram, .held_out_fraction = fraction}).run(job);
    at::Tensor sum = at::zeros({20, 20}, at::TensorOptions(at::kDouble));
    for (size_t i = 0; i < (fraction == 0 ? 3 : 2); ++i) {
      const at::Tensor normed =
          span.job.dense[0].norms.at("before_attention").gain *
          rms_normalize(span.boundaries.held[0][i], span.architecture.norm_epsilon);
      sum.add_(normed.to(at::kDouble).t().mm(normed.to(at::kDouble)));
    }
    const InputStatistics& statistics = span.job.statistics.at("model.layers.0.attention_in");
    EXPECT_THAT(statistics.gram, IsCloseTo(sum.to(at::kFloat)));
    EXPECT_THAT(statistics.gram, IsIdenticalTo(statistics.gram.t().contiguous()));
    EXPECT_EQ(statistics.tokens, kWindows * TinySpan::kSeqlen);
  }
}

TEST(Calibrate, NormsDoNotDependOnWhetherGramMatricesAreGathered) {
  TinySpan squares(kWindows, at::kFloat, at::kFloat), gram(kWindows, at::kFloat, at::kFloat);
  run(squares);
  run(gram, Calibrate::Statistics::kGram);
  for (const auto& [name, statistics] : squares.job.statistics) {
    EXPECT_THAT(gram.job.statistics.at(name).sum_of_squares,
                IsIdenticalTo(statistics.sum_of_squares));
    EXPECT_FALSE(statistics.gram.defined());
  }
}

TEST(Calibrate, NoStatisticsWhereNoneAreAskedFor) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  run(span, Calibrate::Statistics::kNone);
  EXPECT_TRUE(span.job.statistics.empty());
}

TEST(Calibrate, AnnouncesTheWindowsItReads) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  run(span);
  EXPECT_THAT(span.boundaries.announced, ElementsAre(ElementsAre(0, 1, 2)));
}

TEST(Calibrate, Bf16WeightsMayBeComputedWithInFp32) {
  TinySpan span(kWindows, at::kBFloat16, at::kFloat);
  span.boundaries.wanted = {1};
  const testing::Windows expected = span.boundaries.held[1];
  run(span);
  EXPECT_THAT(span.boundaries.held[1][2], IsIdenticalTo(expected[2]));
  EXPECT_EQ(span.job.dense[0].linears.at("q").weight.scalar_type(), at::kBFloat16);
}

TEST(Calibrate, NanInAWeightIsNamedBeforeAnythingIsRead) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.job.dense[0].linears.at("up").weight[3][4] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THAT(message_of(span), HasSubstr("model.layers.0.mlp.up_proj.weight: 1 of 660"));
  EXPECT_TRUE(span.boundaries.announced.empty());
}

TEST(Calibrate, InfinityInTheOutputNamesTheHalf) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.job.dense[0].linears.at("o").weight.fill_(3e38);
  EXPECT_THAT(message_of(span), HasSubstr("model.layers.0.self_attn.o_proj"));
}

TEST(Calibrate, WhatFloat16CannotHoldNamesTheHalf) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.architecture.dtype = "F16";
  span.job.dense[0].linears.at("o").bias.fill_(7e4);
  // Whether anybody asks for the boundary or makes it again: budgets choose, and change no error.
  EXPECT_THAT(message_of(span),
              HasSubstr("residual stream after model.layers.0.self_attn.o_proj in float16"));
}

// ---- cost ----

Cost cost_of(const TinySpan& span, HalfRange halves, int64_t num_windows) {
  return Calibrate({.statistics = Calibrate::Statistics::kSquares})
      .cost({span.architecture, halves, num_windows, TinySpan::kSeqlen, 4});
}

TEST(Calibrate, CostIsOneForwardOfEveryToken) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const double tokens = kWindows * TinySpan::kSeqlen;
  double flop = 0;
  for (const LinearSpec& linear : span.architecture.linears) {
    flop += 2 * tokens * static_cast<double>(linear.in * linear.out);
  }
  // Scores and their weighted sum, over half of the square.
  flop += 2 * tokens * double(TinySpan::kSeqlen * span.architecture.heads) *
          double(span.architecture.head_dim);
  EXPECT_DOUBLE_EQ(cost_of(span, {0, 2}, kWindows).flop(), flop);
}

TEST(Calibrate, CostOfABlockIsThatOfItsHalves) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  EXPECT_DOUBLE_EQ(cost_of(span, {0, 2}, kWindows).flop(),
                   cost_of(span, {0, 1}, kWindows).flop() + cost_of(span, {1, 2}, kWindows).flop());
}

TEST(Calibrate, CostMovesWhatARunReadsAndWrites) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.boundaries.held.erase(1);
  span.boundaries.held.erase(2);
  span.boundaries.wanted = {1, 2};
  run(span);
  size_t windows = span.boundaries.held.at(1).size() + span.boundaries.held.at(2).size();
  for (const std::vector<int>& order : span.boundaries.announced) windows += order.size();
  const double window_bytes = TinySpan::kSeqlen * double(span.architecture.hidden) * 4;
  EXPECT_EQ(cost_of(span, {0, 2}, kWindows).bytes_moved, double(windows) * window_bytes);
}

TEST(Calibrate, CostHoldsOneWindowHoweverMany) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  EXPECT_EQ(cost_of(span, {0, 2}, 1000).bytes_held, cost_of(span, {0, 2}, 1).bytes_held);
}

TEST(Calibrate, CostKeepsTheGramMatricesOfEveryInput) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  const SpanShape shape{span.architecture, {0, 2}, kWindows, TinySpan::kSeqlen, 4};
  const Cost cost = Calibrate({.statistics = Calibrate::Statistics::kGram}).cost(shape);
  EXPECT_EQ(cost.bytes_kept, 4 * (20 * 20 + 24 * 24 + 20 * 20 + 33 * 33));
  EXPECT_EQ(cost_of(span, {0, 2}, kWindows).bytes_kept, 0);
  EXPECT_GT(cost.flop(), cost_of(span, {0, 2}, kWindows).flop());
}

TEST(Calibrate, CostOfNoWindowsIsNone) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  EXPECT_EQ(cost_of(span, {0, 2}, 0).flop(), 0);
  EXPECT_EQ(cost_of(span, {0, 2}, 0).bytes_moved, 0);
}

TEST(Calibrate, StatisticsOfAnExpertAreOfItsTokensAlone) {
  TinySpan span(testing::tiny_moe(), kWindows, at::kFloat, at::kFloat);
  run(span, Calibrate::Statistics::kGram);
  const BlockWeights& weights = span.job.dense[0];
  const int64_t hidden = span.architecture.hidden;
  std::vector<at::Tensor> grams(5, at::zeros({hidden, hidden}));
  std::vector<int64_t> tokens(5);
  for (const at::Tensor& x : span.boundaries.held[1]) {
    const at::Tensor rows =
        weights.norms.at("before_mlp").gain * rms_normalize(x, span.architecture.norm_epsilon);
    for (const at::Tensor& row : rows.unbind(0)) {
      const at::Tensor chosen = std::get<1>(weights.router.mv(row).topk(2));
      for (int64_t i = 0; i < 2; ++i) {
        const auto expert = size_t(chosen[i].item<int64_t>());
        grams[expert] = grams[expert] + row.outer(row);
        ++tokens[expert];
      }
    }
  }
  for (size_t expert = 0; expert < 5; ++expert) {
    const std::string name = "model.layers.0.expert_" + std::to_string(expert);
    const InputStatistics& statistics = span.job.statistics.at(name + "_in");
    EXPECT_EQ(statistics.tokens, tokens[expert]);
    EXPECT_EQ(span.job.statistics.at(name + "_units").tokens, tokens[expert]);
    EXPECT_THAT(statistics.gram, IsCloseTo(grams[expert]));
    EXPECT_THAT(statistics.sum_of_squares.to(at::kFloat), IsCloseTo(grams[expert].diagonal()));
  }
}

TEST(Calibrate, AnExpertWithoutTokensHasStatisticsOfNothing) {
  TinySpan span(testing::tiny_moe(), kWindows, at::kFloat, at::kFloat);
  testing::starve_the_last_expert(span);
  run(span, Calibrate::Statistics::kGram);
  const InputStatistics& statistics = span.job.statistics.at("model.layers.0.expert_4_in");
  EXPECT_EQ(statistics.tokens, 0);
  EXPECT_EQ(statistics.gram.count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(statistics.sum_of_squares.count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(span.job.statistics.at("model.layers.0.expert_3_in").tokens +
                span.job.statistics.at("model.layers.0.expert_2_in").tokens,
            kWindows * TinySpan::kSeqlen);
}

}  // namespace
}  // namespace coppice
