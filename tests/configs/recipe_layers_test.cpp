// What a recipe that removes layers may say, and what it leaves out.
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

Keys layers(const Keys& more, const std::string& window = "none") {
  Keys keys = {{"prune.method", "similarity"},
               {"prune.layer_sparsity", "0.2"},
               {"reconstruct.window", window}};
  keys.insert(keys.end(), more.begin(), more.end());
  return keys;
}

TEST(RecipeOfLayers, EveryUnitIsRead) {
  for (const char* units : {"blocks", "sublayers", "attention", "mlp"}) {
    EXPECT_EQ(checked(layers({{"prune.layer_units", units}})).prune.layer_sparsity, 0.2);
  }
}

TEST(RecipeOfLayers, WindowsThatCanMakeUpForALayerAreTaken) {
  const Keys mixed = {{"reconstruct.propagation", "mixed"}};
  for (const char* window : {"half-block", "block", "3"}) {
    EXPECT_NO_THROW(checked(layers(mixed, window))) << window;
  }
  EXPECT_NO_THROW(checked(layers({}, "3")));
  EXPECT_NO_THROW(checked(layers({{"prune.layer_units", "mlp"}}, "block")));
}

TEST(RecipeOfLayers, TheResolvedRecipePassesItsOwnCheck) {
  Recipe recipe = checked(layers({{"reconstruct.propagation", "mixed"}}, "half-block"));
  std::vector<std::string> all;
  for (const RecipeKey& key : recipe_keys()) all.push_back(key.path());
  const std::string before = write_recipe(recipe);
  check_recipe(recipe, all);
  EXPECT_EQ(write_recipe(recipe), before);
}

struct Refused {
  Keys keys;
  std::string said;
};

class RecipeOfLayersRefuses : public ::testing::TestWithParam<Refused> {};

TEST_P(RecipeOfLayersRefuses, WhatDoesNotGoTogether) {
  EXPECT_THAT([] { checked(GetParam().keys); },
              ThrowsMessage<ConfigError>(HasSubstr(GetParam().said)));
}

INSTANTIATE_TEST_SUITE_P(
    Keys, RecipeOfLayersRefuses,
    ::testing::Values(
        Refused{{{"prune.method", "similarity"}}, "how many? prune.layer_sparsity"},
        Refused{{{"prune.layer_sparsity", "0.2"}}, "of method similarity"},
        Refused{{{"prune.layer_units", "mlp"}}, "of method similarity"},
        Refused{layers({{"prune.sparsity", "0.3"}}), "leave out sparsity"},
        Refused{layers({{"prune.sparsity_type", "2:4"}}), "leave out sparsity"},
        Refused{layers({{"prune.block_sparsities", "0.3,0.4"}}), "leave out sparsity"},
        Refused{layers({{"prune.sparsity_map", "down_proj=0.4"}}), "leave out sparsity"},
        Refused{layers({{"prune.comparison", "matrix"}}), "leave out sparsity"},
        Refused{layers({{"prune.allocation", "owl"}}), "leave out sparsity"},
        Refused{layers({{"prune.allocation", "measured"}}), "leave out sparsity"},
        Refused{layers({{"prune.ffn_sparsity", "0.3"}}), "leave out sparsity"},
        Refused{layers({{"prune.unit_sparsity", "0.3"}}), "leave out sparsity"},
        Refused{layers({{"prune.targets", "down_proj"}}), "leave out sparsity"},
        Refused{layers({{"prune.ignore", "down_proj"}}), "leave out sparsity"},
        Refused{layers({{"prune.masks", "somewhere"}}), "decide instead of scores"},
        Refused{layers({{"prune.statistics", "propagated"}}), "measured on the dense model"},
        Refused{layers({{"prune.structured_output", "sliced"}, {"prune.layer_units", "mlp"}}),
                "only whole blocks can be cut out"},
        Refused{layers({{"prune.structured_output", "sliced"}, {"prune.export_masks", "true"}}),
                "nothing to mask"},
        Refused{layers({{"reconstruct.solver", "liar"}}), "adamw trains the layers that stay"},
        Refused{layers({{"reconstruct.solver", "least_squares"}}, "3"), "adamw trains"},
        Refused{layers({}, "matrix"), "choose half-block or more"},
        Refused{layers({{"reconstruct.lr", "auto"}}, "3"), "which layers go; state one"},
        Refused{layers({}, "half-block"), "choose mixed"},
        Refused{layers({{"reconstruct.propagation", "sparse"}}, "block"), "choose mixed"}));

}  // namespace
}  // namespace coppice
