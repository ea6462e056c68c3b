// Steps against a search through all of them, and by hand.
#include "stages/units/unit_budget.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <stdexcept>

namespace coppice {
namespace {

using ::testing::ElementsAre;

UnitGroup group(int64_t units, int64_t per_step = 1, double parameters = 1) {
  return {units, per_step, parameters};
}

double cost(const std::vector<UnitGroup>& groups, const std::vector<double>& losses,
            const std::vector<int64_t>& steps) {
  double sum = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    sum += losses[i] * std::pow(double(steps[i]) / double(groups[i].steps()), 2);
  }
  return sum;
}

TEST(UnitBudget, StepsByLossAreTheBestThereAre) {
  const std::vector<UnitGroup> groups = {group(7), group(9), group(8)};
  const std::vector<double> losses = {1.0, 2.7, 0.9};
  const std::vector<int64_t> steps = steps_by_loss(groups, losses, 0.5);
  double best = std::numeric_limits<double>::infinity();
  for (int64_t a = 0; a < 7; ++a) {
    for (int64_t b = 0; b < 9; ++b) {
      const int64_t c = 12 - a - b;
      if (c >= 0 && c < 8) best = std::min(best, cost(groups, losses, {a, b, c}));
    }
  }
  EXPECT_EQ(steps[0] + steps[1] + steps[2], 12);
  EXPECT_DOUBLE_EQ(cost(groups, losses, steps), best);
}

TEST(UnitBudget, EqualLossesGiveEqualShares) {
  EXPECT_THAT(steps_by_loss({group(10), group(10), group(10)}, {2, 2, 2}, 0.4),
              ElementsAre(4, 4, 4));
}

TEST(UnitBudget, WhereNothingWasMissedAllGiveAlike) {
  EXPECT_THAT(steps_by_loss({group(10), group(10)}, {-0.1, 0}, 0.3), ElementsAre(3, 3));
}

TEST(UnitBudget, ALossNearNothingCountsAsAShareOfTheMean) {
  // 0.3 of the mean of 1: the first gives 1 / 0.3 and 1 / 2 of equal parts.
  const auto steps = steps_by_loss({group(1000), group(1000)}, {0, 2}, 0.25);
  EXPECT_NEAR(double(steps[0]) / double(steps[1]), 2 / 0.3, 0.1);
  EXPECT_EQ(steps[0] + steps[1], 500);
}

TEST(UnitBudget, WhatOverflowedGoesLast) {
  const double overflow = std::numeric_limits<double>::infinity();
  EXPECT_THAT(steps_by_loss({group(10), group(10), group(10)}, {overflow, 1, 1}, 0.4),
              ElementsAre(0, 6, 6));
  EXPECT_THAT(steps_by_loss({group(10), group(10)}, {overflow, overflow}, 0.4), ElementsAre(4, 4));
}

TEST(UnitBudget, TheLastStepStays) {
  EXPECT_THAT(steps_by_loss({group(4), group(4, 2), group(1)}, {1, 1, 1}, 0.99),
              ElementsAre(3, 1, 0));
}

TEST(UnitBudget, ParametersAreWhatIsSpent) {
  // Heads of 100 parameters, two at a time; neurons of one.
  const std::vector<UnitGroup> groups = {group(8, 2, 200), group(800, 1, 1)};
  const auto steps = steps_by_loss(groups, {1, 1}, 0.5);
  EXPECT_EQ(200 * steps[0] + steps[1], 800);
  EXPECT_EQ(steps[0], 2);
}

TEST(UnitBudget, TheSmallestScoresOfTheModelGo) {
  const std::vector<std::vector<double>> scores = {{0.1, 0.2, 3}, {1, 2, 4}};
  EXPECT_THAT(steps_by_score({group(3), group(3)}, scores, 0.5, Standardise::kNo),
              ElementsAre(2, 1));
}

TEST(UnitBudget, StandardisedScoresAreFreeOfScaleAndPlace) {
  const std::vector<std::vector<double>> scores = {{1, 2, 3, 10}, {1, 2, 3, 10}};
  std::vector<std::vector<double>> moved = scores;
  for (double& score : moved[1]) score = 1000 * score + 5;
  const std::vector<UnitGroup> groups = {group(4), group(4)};
  EXPECT_EQ(steps_by_score(groups, moved, 0.5, Standardise::kYes),
            steps_by_score(groups, scores, 0.5, Standardise::kYes));
  EXPECT_THAT(steps_by_score(groups, moved, 0.375, Standardise::kNo), ElementsAre(3, 0));
}

TEST(UnitBudget, AScoreIsWantedForEveryStep) {
  EXPECT_THROW(steps_by_score({group(8, 2)}, {{1, 2, 3}}, 0.5, Standardise::kYes),
               std::invalid_argument);
}

TEST(UnitBudget, OfNoGroupsNothingGoes) { EXPECT_TRUE(steps_by_loss({}, {}, 0.5).empty()); }

}  // namespace
}  // namespace coppice
