// What trials and scores of a model become in the sparsity map.
#include "pipeline/unit_allocation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "stages/errors.h"
#include "stages/units/targeted_units.h"
#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::SizeIs;

Recipe units_recipe(Allocation allocation) {
  Recipe recipe;
  recipe.prune.method = PruneMethod::kFlap;
  recipe.prune.allocation = allocation;
  recipe.prune.ffn_sparsity = 0.5;
  recipe.prune.head_sparsity = 0.5;
  recipe.reconstruct.solver = Solver::kLiarAdamW;
  return recipe;
}

/// By half, of a model of two blocks.
std::vector<double> shares(const Recipe& recipe) {
  std::vector<double> shares;
  shares.reserve(4);
  for (int half = 0; half < 4; ++half) {
    shares.push_back(targeted_units(testing::tiny_llama(2), half, recipe.prune).front().sparsity);
  }
  return shares;
}

TEST(UnitAllocation, ParametersOfAStepAreThoseThatGo) {
  const Architecture architecture = testing::tiny_llama(1);
  PruneOptions prune = units_recipe(Allocation::kMeasured).prune;
  const auto units = allocated_units(architecture, prune, Experts::kTogether);
  ASSERT_THAT(units, SizeIs(2));
  // 6 rows of q with biases, 6 columns of o; a neuron of gate and up with biases, a column of down.
  EXPECT_EQ(units[0].group.parameters, 6 * 21 + 20 * 6);
  EXPECT_EQ(units[1].group.parameters, 2 * 21 + 20);
  prune.head_units = HeadUnits::kGroup;  // two heads, and 6 rows of k and v
  const auto groups = allocated_units(architecture, prune, Experts::kTogether);
  EXPECT_EQ(groups[0].group.parameters, 2 * (6 * 21 + 20 * 6) + 2 * 6 * 21);
  EXPECT_EQ(groups[0].group.steps(), 2);
}

TEST(UnitAllocation, ATrialTakesFromOneHalfAlone) {
  const Architecture architecture = testing::tiny_llama(2);
  const auto trials = unit_trials(architecture, units_recipe(Allocation::kMeasured));
  ASSERT_THAT(trials, SizeIs(4));
  EXPECT_THAT(shares(trials[0].recipe), ElementsAre(0.5, 0, 0, 0));
  EXPECT_THAT(shares(trials[3].recipe), ElementsAre(0, 0, 0, 17.0 / 33));
  EXPECT_EQ(trials[3].removed, 17.0 / 33);
  for (const UnitTrial& trial : trials) {
    EXPECT_EQ(trial.recipe.reconstruct.solver, Solver::kLiar);
    EXPECT_EQ(trial.recipe.prune.allocation, Allocation::kUniform);
  }
}

TEST(UnitAllocation, WhatTheMapSaysIsNotMeasured) {
  Recipe recipe = units_recipe(Allocation::kMeasured);
  recipe.prune.sparsity_map = {{"model.layers.0.mlp.down_proj", 0.25}};
  const auto trials = unit_trials(testing::tiny_llama(2), recipe);
  ASSERT_THAT(trials, SizeIs(3));
  allocate_by_losses(trials, {3, 1, 2}, 1, recipe);
  EXPECT_EQ(shares(recipe)[1], 0.25);
}

TEST(UnitAllocation, TheHalfThatIsMissedMostGivesLeast) {
  Recipe recipe = units_recipe(Allocation::kMeasured);
  const auto trials = unit_trials(testing::tiny_llama(2), recipe);
  const auto found = allocate_by_losses(trials, {2.0, 1.1, 1.1, 1.1}, 1.0, recipe);
  // Of eight heads four go, of 66 neurons 33: neurons are missed alike, heads of the first block
  // ten times as much as those of the second, which keeps one.
  EXPECT_THAT(shares(recipe), ElementsAre(0.25, 17.0 / 33, 0.75, 16.0 / 33));
  EXPECT_EQ(recipe.prune.allocation, Allocation::kUniform);
  EXPECT_EQ(found.at("halves").size(), 4);
  EXPECT_EQ(found.at("halves")[0].at("sparsity"), 0.25);
}

TEST(UnitAllocation, ATrialThatOverflowedEndsNothing) {
  Recipe recipe = units_recipe(Allocation::kMeasured);
  const auto trials = unit_trials(testing::tiny_llama(2), recipe);
  const double overflow = std::numeric_limits<double>::quiet_NaN();
  const auto found = allocate_by_losses(trials, {overflow, 1.1, 1.1, 1.1}, 1.0, recipe);
  EXPECT_EQ(shares(recipe).front(), 0.25);  // the other block keeps its last head only
  EXPECT_TRUE(found.at("halves")[0].at("loss").is_null());
  EXPECT_THROW(allocate_by_losses(trials, {2, 1, 1, 1}, overflow, recipe), NumericalError);
}

TEST(UnitAllocation, OneBudgetForNeuronsAndHeads) {
  Recipe recipe = units_recipe(Allocation::kMeasured);
  recipe.prune.ffn_sparsity = recipe.prune.head_sparsity = 0;
  recipe.prune.unit_sparsity = 0.4;
  const Architecture architecture = testing::tiny_llama(2);
  const auto trials = unit_trials(architecture, recipe);
  allocate_by_losses(trials, {1.5, 1.01, 1.5, 1.01}, 1.0, recipe);
  const std::vector<double> found = shares(recipe);
  EXPECT_LT(found[0], 0.4);
  EXPECT_GT(found[1], 0.4);
  double gone = 0, all = 0;
  for (size_t i = 0; i < trials.size(); ++i) {
    const UnitGroup& group = trials[i].units.group;
    gone += found[i] * double(group.steps()) * group.parameters;
    all += double(group.steps()) * group.parameters;
  }
  EXPECT_NEAR(gone / all, 0.4, 0.01);
}

TEST(UnitAllocation, ScoresAreComparedStandardisedButForSnip) {
  std::map<std::string, std::vector<double>> scores;
  for (int block = 0; block < 2; ++block) {
    const std::string prefix = "model.layers." + std::to_string(block) + ".";
    const double scale = block == 0 ? 1 : 100;
    for (int unit = 0; unit < 4; ++unit) {
      scores[prefix + "self_attn.o_proj"].push_back(scale * (unit + 1));
    }
    for (int unit = 0; unit < 33; ++unit) {
      scores[prefix + "mlp.down_proj"].push_back(scale * (unit + 1));
    }
  }
  Recipe flap = units_recipe(Allocation::kGlobal);
  allocate_by_scores(testing::tiny_llama(2), scores, flap);
  EXPECT_THAT(shares(flap), ElementsAre(0.5, 17.0 / 33, 0.5, 16.0 / 33));
  Recipe snip = units_recipe(Allocation::kGlobal);
  snip.prune.method = PruneMethod::kSnip;
  allocate_by_scores(testing::tiny_llama(2), scores, snip);
  EXPECT_THAT(shares(snip), ElementsAre(0.75, 32.0 / 33, 0.25, 1.0 / 33));
}

}  // namespace
}  // namespace coppice
