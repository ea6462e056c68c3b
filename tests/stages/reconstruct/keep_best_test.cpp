#include "stages/reconstruct/keep_best.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

namespace coppice {
namespace {

using ::testing::ElementsAre;

TEST(KeepBest, TheLastWindowsJudgeAndAsManyOfTheFirstAreReported) {
  ReconstructOptions options;
  options.validation_fraction = 0.25;
  const HoldOut split = hold_out(options, 8, "block");
  EXPECT_EQ(split.num_training, 6);
  EXPECT_THAT(split.held_out, ElementsAre(6, 7));
  EXPECT_THAT(split.first, ElementsAre(0, 1));
}

TEST(KeepBest, ReportsNoMoreWindowsThanAreTrainedOn) {
  ReconstructOptions options;
  options.validation_fraction = 0.5;
  EXPECT_THAT(hold_out(options, 3, "block").first, ElementsAre(0));
}

TEST(KeepBest, OneWindowCannotBothTrainAndJudge) {
  EXPECT_THROW(hold_out({}, 1, "block"), std::invalid_argument);
}

TEST(KeepBest, PassesAreCountedInTokens) {
  ReconstructOptions options;
  options.validation_fraction = 0.25;
  options.epochs = 3;
  options.batch_size = 4;
  options.solver = Solver::kLeastSquaresAdamW;
  const Passes passes = passes_of(options, 8, 10);
  EXPECT_EQ(passes.training, 3 * 6 * 10);
  // Held-out: pruned, fitted, after each epoch; the first training windows before and after.
  EXPECT_EQ(passes.evaluated, (5 * 2 + 2 * 2) * 10);
  EXPECT_EQ(passes.steps, 3 * 2);
  EXPECT_EQ(passes.trained_at_once, 4 * 10);
  EXPECT_EQ(passes.judged_at_once, 2 * 10);
}

TEST(KeepBest, NoMoreLiesInMemoryAtOnceThanThereIs) {
  ReconstructOptions options;
  options.validation_fraction = 0.25;
  options.batch_size = 100;
  const Passes passes = passes_of(options, 8, 10);
  EXPECT_EQ(passes.trained_at_once, 6 * 10);
  EXPECT_EQ(passes.judged_at_once, 2 * 10);
  EXPECT_EQ(passes.steps, 1);
}

TEST(KeepBest, LeastSquaresAloneTakesNoSteps) {
  ReconstructOptions options;
  options.solver = Solver::kLeastSquares;
  EXPECT_EQ(passes_of(options, 8, 10).training, 0);
  EXPECT_EQ(passes_of(options, 8, 10).steps, 0);
}

}  // namespace
}  // namespace coppice
