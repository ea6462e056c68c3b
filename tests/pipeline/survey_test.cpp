#include "pipeline/survey.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "configs/errors.h"
#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

using nlohmann::json;
using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Pointwise;

const Architecture kArchitecture = testing::tiny_llama();

Recipe with_open_rate() {
  Recipe recipe;
  recipe.reconstruct.lr = 0;
  return recipe;
}

json trial(size_t recipe, double lr, double error) {
  return {{"recipe", recipe}, {"lr", lr}, {"log_errors", {std::log(error)}}};
}

TEST(Survey, RateWithTheSmallestGeometricMeanIsChosen) {
  // 1e-3 is best on one block and worst on the other: 0.9 · 0.2 against 0.5 · 0.3.
  const std::map<int, json> surveys = {
      {0, {{"trials", {trial(0, 1e-3, 0.9), trial(0, 1e-4, 0.5)}}}},
      {7, {{"trials", {trial(0, 1e-3, 0.2), trial(0, 1e-4, 0.3)}}}}};
  const SurveyedRecipe closed = close_recipes({with_open_rate()}, surveys, kArchitecture).front();
  EXPECT_EQ(closed.recipe.reconstruct.lr, 1e-4);
  const json& tried = closed.found.at("lr").at("tried");
  ASSERT_EQ(tried.size(), 2);
  EXPECT_EQ(tried[0].at("lr"), 1e-4);
  EXPECT_NEAR(tried[0].at("error").get<double>(), std::sqrt(0.15), 1e-12);
  EXPECT_NEAR(tried[1].at("error").get<double>(), std::sqrt(0.18), 1e-12);
}

TEST(Survey, OfEqualRatesTheSmallerIsChosen) {
  const std::map<int, json> surveys = {
      {0, {{"trials", {trial(0, 1e-2, 1), trial(0, 1e-3, 1), trial(0, 3e-3, 1)}}}}};
  EXPECT_EQ(close_recipes({with_open_rate()}, surveys, kArchitecture).front().recipe.reconstruct.lr,
            1e-3);
}

TEST(Survey, EachRecipeHasItsOwnTrials) {
  const std::map<int, json> surveys = {
      {0,
       {{"trials",
         {trial(0, 1e-3, 0.5), trial(0, 1e-4, 0.6), trial(2, 1e-3, 0.8), trial(2, 1e-4, 0.7)}}}}};
  const auto closed =
      close_recipes({with_open_rate(), Recipe{}, with_open_rate()}, surveys, kArchitecture);
  EXPECT_EQ(closed[0].recipe.reconstruct.lr, 1e-3);
  EXPECT_EQ(closed[1].recipe.reconstruct.lr, Recipe{}.reconstruct.lr);
  EXPECT_TRUE(closed[1].found.is_null());
  EXPECT_EQ(closed[2].recipe.reconstruct.lr, 1e-4);
}

TEST(Survey, OutliersOfSpansBecomeSparsitiesOfBlocks) {
  Recipe recipe;
  recipe.prune.allocation = Allocation::kOwl;
  recipe.prune.owl_lambda = 0.1;
  const std::map<int, json> surveys = {
      // spans of two blocks
      {0, {{"trials", json::array()}, {"outlier_ratios", {{0.1, 0.3}}}}},
      {2, {{"trials", json::array()}, {"outlier_ratios", {{0.2}}}}}};
  const SurveyedRecipe closed = close_recipes({recipe}, surveys, kArchitecture).front();
  EXPECT_THAT(closed.recipe.prune.block_sparsities, Pointwise(DoubleNear(1e-12), {0.6, 0.4, 0.5}));
  EXPECT_EQ(closed.found.at("allocation").at("outlier_ratios"), json({0.1, 0.3, 0.2}));
}

TEST(Survey, WindowsCountTheSameWhicheverSpanTheyAreIn) {
  // Two windows in the first span, one in the second: 1e-4 wins by windows, 1e-3 by spans.
  const auto windows = [](double lr, std::vector<double> errors) {
    json logs = json::array();
    for (const double error : errors) logs.push_back(std::log(error));
    return json{{"recipe", 0}, {"lr", lr}, {"log_errors", logs}};
  };
  const std::map<int, json> surveys = {
      {0, {{"trials", {windows(1e-3, {0.5, 0.5}), windows(1e-4, {0.3, 0.3})}}}},
      {2, {{"trials", {windows(1e-3, {0.2}), windows(1e-4, {0.4})}}}}};
  EXPECT_EQ(close_recipes({with_open_rate()}, surveys, kArchitecture).front().recipe.reconstruct.lr,
            1e-4);
}

TEST(Survey, RatesThatNoWindowCouldTryAreAnError) {
  const std::map<int, json> surveys = {
      {0, {{"trials", {{{"recipe", 0}, {"lr", 1e-3}, {"log_errors", json::array()}}}}}}};
  EXPECT_THROW(close_recipes({with_open_rate()}, surveys, kArchitecture), ConfigError);
}

TEST(Survey, BlocksWithoutTargetsKeepTheSparsityAndDoNotCount) {
  Recipe recipe;
  recipe.prune.allocation = Allocation::kOwl;
  recipe.prune.owl_lambda = 0.1;
  const std::map<int, json> surveys = {
      {0, {{"trials", json::array()}, {"outlier_ratios", {{0.1, nullptr, 0.3}}}}}};
  EXPECT_THAT(close_recipes({recipe}, surveys, kArchitecture).front().recipe.prune.block_sparsities,
              Pointwise(DoubleNear(1e-12), {0.6, 0.5, 0.4}));
}

TEST(Survey, TrialsAreOnTheFirstMiddleAndLastBlockOnce) {
  EXPECT_THAT(trial_blocks(30), ElementsAre(0, 15, 29));
  EXPECT_THAT(trial_blocks(2), ElementsAre(0, 1));
  EXPECT_THAT(trial_blocks(1), ElementsAre(0));
}

Recipe without_layers(LayerUnits units) {
  Recipe recipe;
  recipe.prune.method = PruneMethod::kSimilarity;
  recipe.prune.layer_units = units;
  recipe.prune.layer_sparsity = 0.33;
  return recipe;
}

TEST(Survey, SimilaritiesOfSpansSayWhichLayersGo) {
  const auto layers = [](double attention, double mlp, double block) {
    return json{{"attention", attention}, {"mlp", mlp}, {"block", block}};
  };
  const std::map<int, json> surveys = {
      // spans of two blocks
      {0, {{"similarities", {layers(0.1, 0.8, 0.2), layers(0.9, 0.3, 0.7)}}}},
      {2, {{"similarities", {layers(0.2, 0.4, 0.6)}}}}};
  const auto closed =
      close_recipes({without_layers(LayerUnits::kBlocks), without_layers(LayerUnits::kSublayers)},
                    surveys, kArchitecture);
  EXPECT_THAT(closed[0].recipe.prune.removed_halves, ElementsAre(2, 3));
  const json& found = closed[0].found.at("similarity");
  EXPECT_EQ(found.at("block"), json({0.2, 0.7, 0.6}));
  EXPECT_EQ(found.at("mlp"), json({0.8, 0.3, 0.4}));
  EXPECT_EQ(found.at("removed"), json::array({{{"block", 1}, {"layer", "block"}}}));
  EXPECT_THAT(closed[1].recipe.prune.removed_halves, ElementsAre(1, 2));
  EXPECT_EQ(
      closed[1].found.at("similarity").at("removed"),
      json::array({{{"block", 0}, {"layer", "mlp"}}, {{"block", 1}, {"layer", "attention"}}}));
  for (const SurveyedRecipe& recipe : closed) EXPECT_FALSE(is_open(recipe.recipe));
}

TEST(Survey, OnlyOpenRecipesWantOne) {
  EXPECT_TRUE(is_open(without_layers(LayerUnits::kMlp)));
  EXPECT_FALSE(is_open(Recipe{}));
  EXPECT_TRUE(is_open(with_open_rate()));
}

}  // namespace
}  // namespace coppice
