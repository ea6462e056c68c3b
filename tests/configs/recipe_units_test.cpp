// What a recipe that removes neurons and heads may say, and what it leaves out.
#include <gmock/gmock.h>

#include "configs/errors.h"
#include "configs/recipe.h"

namespace coppice {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using Keys = std::vector<std::pair<std::string, std::string>>;

Recipe checked(const Keys& keys) {
  Recipe recipe;
  std::vector<std::string> stated;
  for (const auto& [key, text] : keys) {
    set_recipe_key(recipe, key, text);
    stated.push_back(key);
  }
  check_recipe(recipe, stated);
  return recipe;
}

Keys units(const Keys& more) {
  Keys keys = {{"prune.method", "wanda_sp"}, {"prune.ffn_sparsity", "0.5"}};
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

TEST(RecipeOfUnits, EveryMethodSolverAndCountIsRead) {
  for (const char* method : {"random_sp", "magnitude_sp", "wanda_sp", "flap", "snip"}) {
    for (const char* solver : {"adamw", "bias", "liar", "liar+adamw"}) {
      for (const char* heads : {"query", "balanced", "group"}) {
        const Recipe recipe = checked({{"prune.method", method},
                                       {"prune.head_sparsity", "0.25"},
                                       {"prune.head_units", heads},
                                       {"reconstruct.solver", solver}});
        EXPECT_TRUE(removes_units(recipe.prune.method));
        EXPECT_EQ(folds_units(recipe.reconstruct), solver != std::string("adamw"));
      }
    }
  }
}

TEST(RecipeOfUnits, RidgeIsFoundUnlessItIsStated) {
  EXPECT_EQ(checked(units({{"reconstruct.solver", "liar"}})).reconstruct.ridge, 0);
  const Keys stated = units({{"reconstruct.solver", "liar"}, {"reconstruct.ridge", "0.1"}});
  EXPECT_EQ(checked(stated).reconstruct.ridge, 0.1);
  EXPECT_EQ(checked({{"reconstruct.solver", "least_squares"}}).reconstruct.ridge, 0.01);
  const Keys found = {{"reconstruct.solver", "least_squares"}, {"reconstruct.ridge", "auto"}};
  EXPECT_EQ(checked(found).reconstruct.ridge, 0);
}

TEST(RecipeOfUnits, TheResolvedRecipePassesItsOwnCheck) {
  for (const char* solver : {"adamw", "bias", "liar+adamw"}) {
    Recipe recipe = checked(units({{"reconstruct.solver", solver}}));
    std::vector<std::string> all;
    for (const RecipeKey& key : recipe_keys()) all.push_back(key.path());
    const std::string before = write_recipe(recipe);
    check_recipe(recipe, all);
    EXPECT_EQ(write_recipe(recipe), before);
  }
}

struct Refused {
  Keys keys;
  std::string said;
};

class RecipeOfUnitsRefuses : public ::testing::TestWithParam<Refused> {};

TEST_P(RecipeOfUnitsRefuses, WhatDoesNotGoTogether) {
  EXPECT_THAT([] { checked(GetParam().keys); },
              ThrowsMessage<ConfigError>(HasSubstr(GetParam().said)));
}

INSTANTIATE_TEST_SUITE_P(
    Keys, RecipeOfUnitsRefuses,
    ::testing::Values(
        Refused{{{"prune.method", "flap"}}, "how many? prune.ffn_sparsity"},
        Refused{{{"prune.ffn_sparsity", "0.5"}}, "choose one of them"},
        Refused{{{"reconstruct.solver", "liar"}}, "for single weights least_squares does it"},
        Refused{{{"reconstruct.solver", "bias"}}, "for single weights least_squares does it"},
        Refused{units({{"reconstruct.solver", "least_squares+adamw"}}), "liar does it"},
        Refused{units({{"reconstruct.window", "matrix"}}), "choose half-block or more"},
        Refused{units({{"prune.sparsity", "0.3"}}), "leave out sparsity"},
        Refused{units({{"prune.sparsity_type", "2:4"}}), "leave out sparsity"},
        Refused{units({{"prune.comparison", "row"}}), "leave out sparsity"},
        Refused{units({{"prune.allocation", "owl"}}), "leave out sparsity"},
        Refused{units({{"prune.block_sparsities", "0.3,0.4"}}), "leave out sparsity"}));

}  // namespace
}  // namespace coppice
