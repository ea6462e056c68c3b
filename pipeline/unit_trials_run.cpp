#include "pipeline/unit_trials_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "configs/errors.h"   // ConfigError
#include "pipeline/errors.h"  // BudgetError
#include "pipeline/run_checks.h"
#include "pipeline/telemetry/json_text.h"
#include "storage/io/file.h"

namespace coppice {
namespace {

using nlohmann::json;

bool is_measured(const Recipe& recipe) { return recipe.prune.allocation == Allocation::kMeasured; }

// What only a run with tokens sees is refused by the trials.
void check_recipes(const PruneRunOptions& options, const Architecture& architecture) {
  TokenWindows no_tokens;  // only their length matters
  no_tokens.seqlen = options.shared().calibration.seqlen;
  for (const NamedRecipe& named : options.recipes) {
    check_against_model(named.recipe, architecture, no_tokens);
  }
}

std::string text_of(const std::exception_ptr& refusal) {
  try {
    std::rethrow_exception(refusal);
  } catch (const std::exception& error) {
    return error.what();
  }
}

}  // namespace

std::optional<UnitTrialsRun> unit_trials_run(const PruneRunOptions& options) {
  const bool any = std::any_of(options.recipes.begin(), options.recipes.end(),
                               [](const NamedRecipe& named) { return is_measured(named.recipe); });
  if (!any) return std::nullopt;
  const Architecture architecture = open_source(options).architecture;
  check_recipes(options, architecture);
  UnitTrialsRun run{options, {}};
  run.options.recipes.clear();
  run.options.sweep = SweepOptions{{"trial"}, false};
  run.options.work = options.work / kTrialsDirectory / "work";
  run.options.output = options.work / kTrialsDirectory / "recipes";
  run.options.trace.clear();
  for (const NamedRecipe& named : options.recipes) {
    std::vector<UnitTrial>& trials = run.trials.emplace_back();
    if (!is_measured(named.recipe)) continue;
    trials = unit_trials(architecture, named.recipe);
    for (const UnitTrial& trial : trials) {
      const std::string name = fmt::format("{}{}{}.{}", named.name, named.name.empty() ? "" : ".",
                                           trial.units.half / 2, name_of(trial.units.kind));
      run.options.recipes.push_back({name, trial.recipe, {name}});
      std::string& device = run.options.recipes.back().recipe.resources.device;
      device = device.substr(0, device.find(','));  // held-out windows flow from block to block
    }
  }
  if (run.options.recipes.empty()) {
    throw ConfigError(
        "prune.allocation: measured: sparsity_map says of every neuron and head how many go; "
        "nothing is left to be measured");
  }
  return run;
}

PruneRunOptions closed_by_trials(const PruneRunOptions& options, const UnitTrialsRun& run) {
  const json report = json::parse(read_file(run.options.work / "coppice_report.json"));
  std::vector<double> losses;
  for (const json& row : report.at("rows")) {
    losses.push_back(number_or_nan(row.at("held_out_loss")));
  }
  PruneRunOptions closed = options;
  size_t first = 0;
  for (size_t recipe = 0; recipe < options.recipes.size(); ++recipe) {
    json& found = closed.measured.emplace_back();
    const std::vector<UnitTrial>& trials = run.trials[recipe];
    if (trials.empty()) continue;
    const auto begin = losses.begin() + long(first);
    found = allocate_by_losses(trials, {begin, begin + long(trials.size())},
                               number_or_nan(report.at("dense")), closed.recipes[recipe].recipe);
    found["seconds"] = report.at("totals").at("wall_seconds");
    first += trials.size();
  }
  return closed;
}

std::exception_ptr with_trials(const std::exception_ptr& trials, const std::exception_ptr& run) {
  if (!trials) return run;
  const std::string before = run ? text_of(run) + "\n  Besides, " : "";
  try {
    try {
      std::rethrow_exception(trials);
    } catch (const BudgetError&) {
      std::throw_with_nested(
          BudgetError(before + "the trials of --allocation measured, before the run"));
    }
  } catch (...) {
    return std::current_exception();
  }
}

}  // namespace coppice
