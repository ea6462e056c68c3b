#include "pipeline/prune_run_options.h"

#include <fmt/format.h>

#include <algorithm>

#include "configs/errors.h"  // ConfigError
#include "stages/propagation.h"

namespace coppice {

Devices devices_for(const PruneRunOptions& options) {
  const bool is_dense =
      std::none_of(options.recipes.begin(), options.recipes.end(),
                   [](const NamedRecipe& named) { return propagates(named.recipe.reconstruct); });
  return is_dense && !options.sweep ? Devices::kSeveral : Devices::kOne;
}

SourceModel open_source(const PruneRunOptions& options) {
  SourceModel model = open_model(options.model, options.architecture);
  if (options.shared().reconstruct.add_biases) add_biases(model);
  return model;
}

PlannedJob PruneRunOptions::job() const {
  PlannedJob job;
  job.recipes.reserve(recipes.size());
  for (const NamedRecipe& named : recipes) job.recipes.push_back(named.recipe);
  job.is_judged = sweep.has_value();
  job.process_bytes = process_bytes;
  job.num_written = sweep && !sweep->writes_checkpoints ? 0 : int(recipes.size());
  return job;
}

void check_sweep(const std::vector<NamedRecipe>& recipes) {
  const Recipe& first = recipes.front().recipe;
  if (first.calibration.nsamples < 2) {
    throw ConfigError("sweep: calibration.nsamples: at least 2: one to work with, one to judge by");
  }
  for (const auto& [name, recipe, varied] : recipes) {
    if (recipe.reconstruct.propagation != Propagation::kDense) {
      throw ConfigError(fmt::format(
          "sweep: {}: reconstruct.propagation: the recipes of a sweep share one dense pass, so it "
          "must be dense; use run for each of the others",
          name));
    }
    for (const RecipeKey& key : recipe_keys()) {
      const bool may_differ = (key.section == "prune" && key.name != "masks") ||
                              (key.section == "reconstruct" && key.name != "validation_fraction" &&
                               key.name != "add_biases");
      if (may_differ || key.get(recipe) == key.get(first)) continue;
      throw ConfigError(
          fmt::format("sweep: {}: {}: {} here and {} in {}; the recipes of a sweep see the same "
                      "windows of the same model on the same machine",
                      name, key.path(), key.get(recipe), key.get(first), recipes.front().name));
    }
  }
}

}  // namespace coppice
