// The recipes of a sweep: some, each with every combination of values of some keys.
#pragma once

#include <string>
#include <vector>

#include "pipeline/prune_run_options.h"

namespace coppice {

/// A recipe before it is checked, and which of its keys somebody set (for check_recipe).
struct BaseRecipe {
  std::string name;  // of its file; empty where it is the only one
  Recipe recipe;
  std::vector<std::string> keys_set;
};

struct SweepGrid {
  std::vector<std::string> keys;  // paths; first "recipe" where there are several bases
  std::vector<NamedRecipe> recipes;
};

/// Every base with every combination of `vary`, texts as in "lr=1e-4,1e-3" (flag names without
/// dashes, or paths); the last key varies fastest. A recipe is named by its values. Throws
/// ConfigError for what is no key, or a list, or belongs to the calibration or the machine; for
/// values that are wrong or given twice; for a combination that check_recipe refuses, with its
/// name; and as check_sweep does.
SweepGrid sweep_grid(const std::vector<BaseRecipe>& bases, const std::vector<std::string>& vary);

}  // namespace coppice
