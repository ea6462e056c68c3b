#include "stages/reconstruct/schedule.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "stages/reconstruct.h"  // learning_rate, num_held_out

namespace coppice {
namespace {

ReconstructOptions at_rate(double lr) {
  ReconstructOptions options;
  options.lr = lr;
  return options;
}

TEST(Schedule, RateRisesToItsPeakAndFallsAndIsNeverZero) {
  const ReconstructOptions options = at_rate(1);
  std::vector<double> rates;
  rates.reserve(60);
  for (int step = 0; step < 60; ++step) rates.push_back(learning_rate(options, step, 60));
  EXPECT_GT(rates.front(), 0);
  EXPECT_DOUBLE_EQ(rates[5], 1);  // after a tenth of the steps
  EXPECT_TRUE(std::is_sorted(rates.begin(), rates.begin() + 6));
  EXPECT_TRUE(std::is_sorted(rates.rbegin(), rates.rend() - 6));
  EXPECT_GT(rates.back(), 0);
  EXPECT_LT(rates.back(), 0.02);
}

TEST(Schedule, OneStepRunsAtFullRate) { EXPECT_EQ(learning_rate(at_rate(1), 0, 1), 1); }

TEST(Schedule, HeldOutWindowsAreAShareRoundedUpAndLeaveOneToTrainOn) {
  EXPECT_EQ(num_held_out(1.0 / 16, 128), 8);
  EXPECT_EQ(num_held_out(1.0 / 16, 129), 9);
  EXPECT_EQ(num_held_out(1.0 / 16, 2), 1);
  EXPECT_EQ(num_held_out(0.07, 100), 7);
  EXPECT_EQ(num_held_out(0, 5), 1);
  EXPECT_EQ(num_held_out(0.99, 5), 4);
}

TEST(Schedule, OrderIsAscendingUnlessShuffled) {
  EXPECT_THAT(epoch_order({}, "w", 3, 4), ::testing::ElementsAre(0, 1, 2, 3));
}

TEST(Schedule, ShuffleIsAFunctionOfSeedNameAndEpoch) {
  ReconstructOptions options;
  options.shuffle = true;
  const std::vector<int> order = epoch_order(options, "model.layers.0.mlp", 0, 16);
  EXPECT_EQ(order, epoch_order(options, "model.layers.0.mlp", 0, 16));
  EXPECT_NE(order, epoch_order(options, "model.layers.0.mlp", 1, 16));
  EXPECT_NE(order, epoch_order(options, "model.layers.1.mlp", 0, 16));
  ReconstructOptions other_seed = options;
  other_seed.seed = 1;
  EXPECT_NE(order, epoch_order(other_seed, "model.layers.0.mlp", 0, 16));
  EXPECT_THAT(order, ::testing::UnorderedElementsAreArray(epoch_order({}, "", 0, 16)));
}

}  // namespace
}  // namespace coppice
