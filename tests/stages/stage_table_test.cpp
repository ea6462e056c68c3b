#include "stages/stage_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::string_view> stages_with(PruneMethod method, WindowKind window,
                                          Propagation propagation = Propagation::kDense) {
  PruneOptions prune;
  prune.method = method;
  ReconstructOptions reconstruct;
  reconstruct.window = {window};
  reconstruct.propagation = propagation;
  std::vector<std::string_view> names;
  for (const auto& stage : adapt_stages(prune, reconstruct)) names.push_back(stage->name());
  return names;
}

Products forward_gives(PruneMethod method, Solver solver = Solver::kAdamW,
                       WindowKind window = WindowKind::kHalfBlock) {
  PruneOptions prune;
  prune.method = method;
  ReconstructOptions reconstruct;
  reconstruct.solver = solver;
  reconstruct.window = {window};
  return forward_stage(prune, reconstruct)->gives();
}

TEST(StageTable, WindowsArePrunedThenReconstructed) {
  for (const WindowKind window : {WindowKind::kHalfBlock, WindowKind::kBlock}) {
    EXPECT_THAT(stages_with(PruneMethod::kWanda, window), ElementsAre("prune", "reconstruct"));
    EXPECT_THAT(stages_with(PruneMethod::kMagnitude, window), ElementsAre("prune", "reconstruct"));
  }
}

TEST(StageTable, LayersGoLikeAnythingElse) {
  EXPECT_THAT(stages_with(PruneMethod::kSimilarity, WindowKind::kHalfBlock, Propagation::kMixed),
              ElementsAre("prune", "reconstruct", "propagate"));
  EXPECT_THAT(stages_with(PruneMethod::kSimilarity, WindowKind::kNone), ElementsAre("prune"));
}

TEST(StageTable, WithoutAWindowThereIsNoReconstruction) {
  EXPECT_THAT(stages_with(PruneMethod::kWanda, WindowKind::kNone), ElementsAre("prune"));
}

TEST(StageTable, WhatIsPropagatedIsMeasuredFirstAndHandedOnLast) {
  for (const Propagation propagation : {Propagation::kSparse, Propagation::kMixed}) {
    EXPECT_THAT(stages_with(PruneMethod::kWanda, WindowKind::kHalfBlock, propagation),
                ElementsAre("propagated statistics", "prune", "reconstruct", "propagate"));
    EXPECT_THAT(stages_with(PruneMethod::kWanda, WindowKind::kNone, propagation),
                ElementsAre("propagated statistics", "prune", "propagate"));
    EXPECT_THAT(stages_with(PruneMethod::kMagnitude, WindowKind::kMatrix, propagation),
                ElementsAre("prune", "reconstruct", "propagate"));
  }
}

TEST(StageTable, SparsePropagationNeedsNoDenseForwardUnlessStatisticsDo) {
  PruneOptions prune;
  ReconstructOptions reconstruct;
  reconstruct.propagation = Propagation::kSparse;
  EXPECT_EQ(forward_stage(prune, reconstruct), nullptr);
  prune.statistics = StatisticsOf::kDense;
  ASSERT_NE(forward_stage(prune, reconstruct), nullptr);
  EXPECT_TRUE(contains(forward_stage(prune, reconstruct)->gives(), Products::kStatistics));
}

TEST(StageTable, NoDenseForwardWhereNobodyReadsIt) {
  PruneOptions prune;
  ReconstructOptions reconstruct;
  reconstruct.propagation = Propagation::kMixed;
  reconstruct.window = {WindowKind::kNone};  // no targets
  EXPECT_EQ(forward_stage(prune, reconstruct), nullptr);
  reconstruct.propagation = Propagation::kSparse;
  prune.statistics = StatisticsOf::kDense;
  prune.method = PruneMethod::kMagnitude;  // no statistics
  EXPECT_EQ(forward_stage(prune, reconstruct), nullptr);
}

TEST(StageTable, MixedPropagationNeedsTheDenseForwardForItsTargetsAlone) {
  ReconstructOptions reconstruct;
  reconstruct.propagation = Propagation::kMixed;
  const auto forward = forward_stage({}, reconstruct);
  ASSERT_NE(forward, nullptr);
  EXPECT_EQ(forward->gives(), Products::kBoundaries);
}

TEST(StageTable, AWindowOfSeveralBlocksTakesWhatIsLeft) {
  EXPECT_THAT(windows_of({4, 14}, {WindowKind::kBlock, 2}),
              ElementsAre(HalfRange{4, 8}, HalfRange{8, 12}, HalfRange{12, 14}));
}

TEST(StageTable, MatrixWindowsShareTheirHalf) {
  EXPECT_THAT(windows_of({4, 6}, {WindowKind::kMatrix}),
              ElementsAre(HalfRange{4, 5}, HalfRange{5, 6}));
}

TEST(StageTable, StatisticsAreGatheredOnlyForWhoNeedsThem) {
  EXPECT_TRUE(contains(forward_gives(PruneMethod::kWanda), Products::kStatistics));
  EXPECT_FALSE(contains(forward_gives(PruneMethod::kMagnitude), Products::kStatistics));
}

TEST(StageTable, GramMatricesAreGatheredOnlyForWhoNeedsThem) {
  EXPECT_TRUE(contains(forward_gives(PruneMethod::kSparseGpt), Products::kGram));
  EXPECT_FALSE(contains(forward_gives(PruneMethod::kRia), Products::kGram));
  for (const Solver solver : {Solver::kLeastSquares, Solver::kLeastSquaresAdamW}) {
    EXPECT_TRUE(contains(forward_gives(PruneMethod::kMagnitude, solver), Products::kGram));
    EXPECT_FALSE(
        contains(forward_gives(PruneMethod::kWanda, solver, WindowKind::kNone), Products::kGram));
  }
}

TEST(StageTable, EveryForwardGivesBoundaries) {
  EXPECT_TRUE(contains(forward_gives(PruneMethod::kWanda), Products::kBoundaries));
  EXPECT_TRUE(contains(forward_gives(PruneMethod::kMagnitude), Products::kBoundaries));
}

TEST(StageTable, HalfBlocksAreWindowsOfTheirOwn) {
  EXPECT_THAT(windows_of({4, 6}, {WindowKind::kHalfBlock}),
              ElementsAre(HalfRange{4, 5}, HalfRange{5, 6}));
}

TEST(StageTable, PruningAloneTakesHalfBlocks) {
  EXPECT_THAT(windows_of({4, 6}, {WindowKind::kNone}),
              ElementsAre(HalfRange{4, 5}, HalfRange{5, 6}));
}

TEST(StageTable, BlocksAreWindowsEvenWhereASpanHoldsTwo) {
  EXPECT_THAT(windows_of({4, 6}, {WindowKind::kBlock}), ElementsAre(HalfRange{4, 6}));
  EXPECT_THAT(windows_of({4, 8}, {WindowKind::kBlock}),
              ElementsAre(HalfRange{4, 6}, HalfRange{6, 8}));
}

TEST(StageTable, WindowsStayInsideASpanThatCutsABlock) {
  EXPECT_THAT(windows_of({5, 9}, {WindowKind::kBlock}),
              ElementsAre(HalfRange{5, 6}, HalfRange{6, 8}, HalfRange{8, 9}));
}

TEST(StageTable, SpanWithoutHalvesHasNoWindows) {
  EXPECT_THAT(windows_of({4, 4}, {WindowKind::kBlock}), IsEmpty());
}

}  // namespace
}  // namespace coppice
