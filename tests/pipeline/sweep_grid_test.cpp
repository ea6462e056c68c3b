#include "pipeline/sweep_grid.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/errors.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<std::string> names_of(const SweepGrid& grid) {
  std::vector<std::string> names;
  for (const NamedRecipe& named : grid.recipes) names.push_back(named.name);
  return names;
}

std::string refusal(const std::vector<BaseRecipe>& bases, const std::vector<std::string>& vary) {
  try {
    sweep_grid(bases, vary);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(SweepGrid, EveryCombinationTheLastKeyFastest) {
  const SweepGrid grid = sweep_grid({{}}, {"prune-method=wanda,ria", "lr=1e-3,1e-4"});
  EXPECT_THAT(grid.keys, ElementsAre("prune.method", "reconstruct.lr"));
  EXPECT_THAT(names_of(grid), ElementsAre("wanda_1e-3", "wanda_1e-4", "ria_1e-3", "ria_1e-4"));
  EXPECT_EQ(grid.recipes[2].recipe.prune.method, PruneMethod::kRia);
  EXPECT_EQ(grid.recipes[2].recipe.reconstruct.lr, 1e-3);
  EXPECT_THAT(grid.recipes[2].varied, ElementsAre("ria", "1e-3"));
}

TEST(SweepGrid, SeveralBasesAreNamedByTheirFiles) {
  BaseRecipe half{"half", {}, {}}, sparse{"2-of-4", {}, {"prune.sparsity_type"}};
  sparse.recipe.prune.pattern = {2, 4};
  const SweepGrid grid = sweep_grid({half, sparse}, {"reconstruct.window=none,block"});
  EXPECT_THAT(grid.keys, ElementsAre("recipe", "reconstruct.window"));
  EXPECT_THAT(names_of(grid),
              ElementsAre("half_none", "half_block", "2-of-4_none", "2-of-4_block"));
  EXPECT_THAT(grid.recipes[3].varied, ElementsAre("2-of-4", "block"));
}

TEST(SweepGrid, OneRecipeIsASweepToo) {
  EXPECT_THAT(names_of(sweep_grid({{}}, {})), ElementsAre("recipe"));
}

TEST(SweepGrid, NamesAreFitForAPath) {
  EXPECT_THAT(names_of(sweep_grid({{}}, {"sparsity-type=2:4"})), ElementsAre("2-4"));
}

TEST(SweepGrid, WhatIsWrongIsNamed) {
  EXPECT_THAT(refusal({{}}, {"spursity=0.5"}), HasSubstr("did you mean sparsity?"));
  EXPECT_THAT(refusal({{}}, {"lr"}), HasSubstr("KEY=VALUE,VALUE"));
  EXPECT_THAT(refusal({{}}, {"lr="}), HasSubstr("KEY=VALUE,VALUE"));
  EXPECT_THAT(refusal({{}}, {"lr=1e-3,x"}), HasSubstr("x"));
  EXPECT_THAT(refusal({{}}, {"lr=1e-3,"}), HasSubstr("reconstruct.lr"));
  EXPECT_THAT(refusal({{}}, {"lr=1e-3,1e-3"}), HasSubstr("1e-3 twice"));
  EXPECT_THAT(refusal({{}}, {"lr=1e-3", "reconstruct.lr=1e-4"}), HasSubstr("varied already"));
  EXPECT_THAT(refusal({{}}, {"nsamples=2,4"}), HasSubstr("same windows"));
  EXPECT_THAT(refusal({{}}, {"targets=up_proj,down_proj"}), HasSubstr("is a list itself"));
  EXPECT_THAT(refusal({{}}, {"propagation=dense,sparse"}), HasSubstr("must be dense"));
  EXPECT_THAT(refusal({{}}, {"validation-fraction=0.1,0.2"}), HasSubstr("validation_fraction"));
  EXPECT_THAT(refusal({{}}, {"sparsity-type=2:4", "sparsity=0.6"}), HasSubstr("2-4_0.6"));
  EXPECT_THAT(refusal({{"a", {}, {}}, {"a", {}, {}}}, {}), HasSubstr("two recipes are called a"));
}

TEST(SweepGrid, RecipesOfOtherWindowsOrMachinesAreRefused) {
  BaseRecipe first{"first", {}, {}}, second{"second", {}, {}};
  second.recipe.calibration.seqlen = 7;
  EXPECT_THAT(refusal({first, second}, {}), HasSubstr("calibration.seqlen"));
  second = {"second", {}, {}};
  second.recipe.resources.threads = 1;
  EXPECT_THAT(refusal({first, second}, {}), HasSubstr("resources.threads"));
  first.recipe.calibration.nsamples = 1;
  first.recipe.reconstruct.window = {WindowKind::kNone};
  EXPECT_THAT(refusal({first}, {}), HasSubstr("nsamples"));
}

}  // namespace
}  // namespace coppice
