// Scores against loops; which units go, for each way to count heads.
#include "stages/units/unit_scores.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

#include "stages/errors.h"
#include "tests/support/tiny_llama.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::IsCloseTo;
using testing::IsIdenticalTo;

struct Units {
  Architecture architecture = testing::tiny_llama();
  UnitLayout ffn = unit_layouts(architecture, Half::kMlp).front();
  UnitLayout heads = unit_layouts(architecture, Half::kAttention).front();  // 4 of 6, in pairs
};

struct Inputs {
  at::Tensor x, weight;
  InputStatistics statistics;

  explicit Inputs(int64_t in, at::ScalarType dtype = at::kFloat) {
    at::manual_seed(4);
    x = at::randn({50, in}).add_(at::randn({in}));
    weight = at::randn({7, in}).to(dtype);
    const at::Tensor exact = x.to(at::kDouble);
    statistics.sum_of_squares = exact.square().sum({0});
    statistics.sum = exact.sum({0});
    statistics.tokens = x.size(0);
  }
  double w(int64_t row, int64_t column) const { return weight[row][column].item<double>(); }
};

double column_by_hand(PruneMethod method, const Inputs& inputs, int64_t column) {
  double sum = 0, squares = 0, mean = 0, moment = 0;
  for (int64_t row = 0; row < inputs.weight.size(0); ++row) {
    sum += std::abs(inputs.w(row, column));
    squares += std::pow(inputs.w(row, column), 2);
  }
  const int64_t tokens = inputs.x.size(0);
  for (int64_t token = 0; token < tokens; ++token) {
    const double x = inputs.x[token][column].item<double>();
    mean += x / double(tokens);
    moment += x * x;
  }
  if (method == PruneMethod::kMagnitudeSp) return std::sqrt(squares);
  if (method == PruneMethod::kWandaSp) return sum * std::sqrt(moment);
  return squares * (moment / double(tokens) - mean * mean);
}

class UnitScores : public ::testing::TestWithParam<PruneMethod> {};

TEST_P(UnitScores, SumOverTheColumnsThatReadTheUnit) {
  const Units units;
  for (const UnitLayout& layout : {units.ffn, units.heads}) {
    const Inputs inputs(layout.count * layout.size);
    at::Tensor expected = at::zeros({layout.count});
    for (int64_t unit = 0; unit < layout.count; ++unit) {
      for (int64_t column = unit * layout.size; column < (unit + 1) * layout.size; ++column) {
        expected[unit] += column_by_hand(GetParam(), inputs, column);
      }
    }
    EXPECT_THAT(unit_scores(GetParam(), layout, inputs.weight, inputs.statistics, 0),
                IsCloseTo(expected));
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, UnitScores,
                         ::testing::Values(PruneMethod::kMagnitudeSp, PruneMethod::kWandaSp,
                                           PruneMethod::kFlap));

TEST(UnitScores, AConstantInputIsNotMissedByFlap) {
  const Units units;
  Inputs inputs(33);
  inputs.statistics.sum[5] = 50 * 3.0;
  inputs.statistics.sum_of_squares[5] = 50 * 9.0;
  const at::Tensor scores =
      unit_scores(PruneMethod::kFlap, units.ffn, inputs.weight, inputs.statistics, 0);
  EXPECT_EQ(scores.argmin().item<int64_t>(), 5);
  EXPECT_EQ(scores[5].item<float>(), 0);
}

TEST(UnitScores, RandomOnesFollowTheSeed) {
  const Units units;
  const Inputs inputs(33);
  const auto draw = [&](uint64_t seed) {
    return unit_scores(PruneMethod::kRandomSp, units.ffn, inputs.weight, {}, seed);
  };
  EXPECT_THAT(draw(1), IsIdenticalTo(draw(1)));
  EXPECT_FALSE(draw(1).equal(draw(2)));
}

TEST(UnitScores, SingleWeightMethodsAreRefused) {
  const Units units;
  const Inputs inputs(33);
  EXPECT_THROW(unit_scores(PruneMethod::kWanda, units.ffn, inputs.weight, inputs.statistics, 0),
               std::invalid_argument);
}

at::Tensor bools(std::vector<int> values) { return at::tensor(values).to(at::kBool); }

TEST(KeptUnits, TheSmallestGoAndOfEqualOnesTheFirst) {
  const Units units;
  at::Tensor scores = at::zeros({33});
  scores[7] = 1;
  scores[30] = 2;
  const at::Tensor kept = kept_units(scores, 0.9, units.ffn, HeadUnits::kQuery);
  EXPECT_EQ(kept.sum().item<int64_t>(), 3);  // 29.7 go: 30
  EXPECT_THAT(kept.nonzero().view(-1), IsIdenticalTo(at::tensor({7L, 30L, 32L})));
}

TEST(KeptUnits, OneAlwaysStays) {
  const Units units;
  EXPECT_EQ(kept_units(at::randn({33}), 0.999, units.ffn, HeadUnits::kQuery).sum().item<int64_t>(),
            1);
}

TEST(KeptUnits, HeadsGoOneByOneOrFromEveryPairOrInPairs) {
  const Units units;
  const at::Tensor scores = at::tensor({1.f, 2.f, 3.f, 4.5f});
  EXPECT_THAT(kept_units(scores, 0.5, units.heads, HeadUnits::kQuery),
              IsIdenticalTo(bools({0, 0, 1, 1})));
  EXPECT_THAT(kept_units(scores, 0.5, units.heads, HeadUnits::kBalanced),
              IsIdenticalTo(bools({0, 1, 0, 1})));
  const at::Tensor uneven = at::tensor({5.f, 0.f, 2.f, 2.f});  // a pair counts as a whole
  EXPECT_THAT(kept_units(uneven, 0.5, units.heads, HeadUnits::kGroup),
              IsIdenticalTo(bools({1, 1, 0, 0})));
}

TEST(KeptUnits, ScoresThatAreNotFiniteAreRefused) {
  const Units units;
  at::Tensor scores = at::zeros({33});
  scores[3] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THROW(kept_units(scores, 0.5, units.ffn, HeadUnits::kQuery), NumericalError);
}

TEST(KeptRows, AreThoseOfTheUnitAndOfWhatItShares) {
  const Units units;
  const at::Tensor kept = bools({0, 0, 0, 1});
  const at::Tensor rows = kept_rows(kept, units.heads);
  ASSERT_EQ(rows.size(0), 24);
  EXPECT_EQ(rows.narrow(0, 0, 18).sum().item<int64_t>(), 0);
  EXPECT_EQ(rows.narrow(0, 18, 6).sum().item<int64_t>(), 6);
  const at::Tensor shared = kept_shared_rows(kept, units.heads);
  ASSERT_EQ(shared.size(0), 12);
  EXPECT_EQ(shared.narrow(0, 0, 6).sum().item<int64_t>(), 0);
  EXPECT_EQ(shared.narrow(0, 6, 6).sum().item<int64_t>(), 6);
}

TEST(StepScores, TellInWhichOrderKeptUnitsGo) {
  const Units units;
  const at::Tensor scores = at::tensor({4.f, 1.f, 2.f, 8.f});
  EXPECT_THAT(step_scores(scores, units.heads, HeadUnits::kQuery), ElementsAre(1, 2, 4, 8));
  EXPECT_THAT(step_scores(scores, units.heads, HeadUnits::kBalanced), ElementsAre(1 + 2, 4 + 8));
  EXPECT_THAT(step_scores(scores, units.heads, HeadUnits::kGroup), ElementsAre(4 + 1, 2 + 8));
  EXPECT_EQ(units_per_step(units.heads, HeadUnits::kQuery), 1);
  EXPECT_EQ(units_per_step(units.heads, HeadUnits::kBalanced), 2);
  EXPECT_EQ(units_per_step(units.heads, HeadUnits::kGroup), 2);
}

}  // namespace
}  // namespace coppice
