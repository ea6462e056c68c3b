#include "stages/stage_table.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::vector<std::string_view> stages_with(PruneMethod method, WindowKind window) {
  PruneOptions prune;
  prune.method = method;
  ReconstructOptions reconstruct;
  reconstruct.window = window;
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
  reconstruct.window = window;
  return forward_stage(prune, reconstruct)->gives();
}

TEST(StageTable, WindowsArePrunedThenReconstructed) {
  for (const WindowKind window : {WindowKind::kHalfBlock, WindowKind::kBlock}) {
    EXPECT_THAT(stages_with(PruneMethod::kWanda, window), ElementsAre("prune", "reconstruct"));
    EXPECT_THAT(stages_with(PruneMethod::kMagnitude, window), ElementsAre("prune", "reconstruct"));
  }
}

TEST(StageTable, WithoutAWindowThereIsNoReconstruction) {
  EXPECT_THAT(stages_with(PruneMethod::kWanda, WindowKind::kNone), ElementsAre("prune"));
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
  EXPECT_THAT(windows_of({4, 6}, WindowKind::kHalfBlock),
              ElementsAre(HalfRange{4, 5}, HalfRange{5, 6}));
}

TEST(StageTable, PruningAloneTakesHalfBlocks) {
  EXPECT_THAT(windows_of({4, 6}, WindowKind::kNone), ElementsAre(HalfRange{4, 5}, HalfRange{5, 6}));
}

TEST(StageTable, BlocksAreWindowsEvenWhereASpanHoldsTwo) {
  EXPECT_THAT(windows_of({4, 6}, WindowKind::kBlock), ElementsAre(HalfRange{4, 6}));
  EXPECT_THAT(windows_of({4, 8}, WindowKind::kBlock),
              ElementsAre(HalfRange{4, 6}, HalfRange{6, 8}));
}

TEST(StageTable, WindowsStayInsideASpanThatCutsABlock) {
  EXPECT_THAT(windows_of({5, 9}, WindowKind::kBlock),
              ElementsAre(HalfRange{5, 6}, HalfRange{6, 8}, HalfRange{8, 9}));
}

TEST(StageTable, SpanWithoutHalvesHasNoWindows) {
  EXPECT_THAT(windows_of({4, 4}, WindowKind::kBlock), IsEmpty());
}

}  // namespace
}  // namespace coppice
