#include "pipeline/unit_allocation.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "pipeline/telemetry/json_text.h"
#include "stages/errors.h"  // NumericalError
#include "stages/targets.h"
#include "stages/units/targeted_units.h"
#include "stages/units/unit_scores.h"

namespace coppice {
namespace {

using nlohmann::json;

// Held out of a trial, at least: what is compared are differences of a few thousandths.
constexpr double kLeastHeldOut = 0.125;

constexpr double kLeastTried = 0.5;

bool is_mapped(const PruneOptions& prune, const std::string& consumer) {
  return std::any_of(
      prune.sparsity_map.begin(), prune.sparsity_map.end(),
      [&](const SparsityRule& rule) { return names_linear(rule.pattern, consumer); });
}

/// With one unit: its rows of every producer, its columns of the consumer.
double parameters_of_unit(const UnitLayout& units) {
  int64_t parameters = units.consumer->out * units.size;
  for (const LinearSpec* producer : units.producers) {
    parameters += units.size * (producer->in + (producer->has_bias ? 1 : 0));
  }
  return static_cast<double>(parameters);
}

/// Shared rows go with the last unit that reads them: with groups, with every step.
double parameters_of_step(const UnitLayout& units, HeadUnits how) {
  const int64_t per_step = units_per_step(units, how);
  double parameters = static_cast<double>(per_step) * parameters_of_unit(units);
  if (units.per_shared > 1 && how != HeadUnits::kGroup) return parameters;
  for (const LinearSpec* linear : units.shared) {
    parameters += static_cast<double>(units.size * (linear->in + (linear->has_bias ? 1 : 0)));
  }
  return parameters;
}

double share_of(const AllocatedUnits& units, int64_t steps) {
  return static_cast<double>(steps * units.group.per_step) / static_cast<double>(units.group.units);
}

/// Neurons and heads by one budget, or each by their own. `allocate` gets the groups of one budget
/// and their indices among all.
using Allocate = std::function<std::vector<int64_t>(
    const std::vector<UnitGroup>& groups, const std::vector<size_t>& indices, double share)>;

std::vector<int64_t> by_budget(const std::vector<AllocatedUnits>& units, const PruneOptions& prune,
                               const Allocate& allocate) {
  std::map<UnitLayout::Kind, std::vector<size_t>> budgets;
  for (size_t index = 0; index < units.size(); ++index) {
    const bool is_joint = prune.unit_sparsity > 0;
    budgets[is_joint ? UnitLayout::Kind::kFfn : units[index].kind].push_back(index);
  }
  std::vector<int64_t> steps(units.size());
  for (const auto& [kind, indices] : budgets) {
    std::vector<UnitGroup> groups;
    groups.reserve(indices.size());
    for (const size_t index : indices) groups.push_back(units[index].group);
    const std::vector<int64_t> of_budget = allocate(groups, indices, units[indices.front()].share);
    for (size_t i = 0; i < indices.size(); ++i) steps[indices[i]] = of_budget[i];
  }
  return steps;
}

json found_of(const std::vector<AllocatedUnits>& units, const std::vector<int64_t>& steps) {
  json found = json::array();
  for (size_t index = 0; index < units.size(); ++index) {
    found.push_back({{"block", units[index].half / 2},
                     {"units", name_of(units[index].kind)},
                     {"consumer", units[index].consumers.front()},
                     {"sparsity", share_of(units[index], steps[index])}});
  }
  return found;
}

/// Half of them, or what the share asks for: less is hard to tell from nothing. One at least, and
/// never all.
int64_t trial_steps(const AllocatedUnits& units) {
  const double share = std::max(units.share, kLeastTried);
  const auto steps = std::llround(share * static_cast<double>(units.group.steps()));
  return std::clamp<int64_t>(steps, 1, units.group.steps() - 1);
}

Recipe trial_recipe(const Recipe& recipe, const AllocatedUnits& units, int64_t steps) {
  Recipe trial = recipe;
  trial.prune.allocation = Allocation::kUniform;
  trial.prune.statistics = StatisticsOf::kAuto;
  trial.prune.unit_sparsity = 0;
  trial.prune.sparsity_map = rules_of({units}, {steps});
  trial.prune.sparsity_map.push_back({"re:.*", 0});
  trial.prune.export_masks = false;
  ReconstructOptions& reconstruct = trial.reconstruct;
  const bool is_folded = reconstruct.window.kind != WindowKind::kNone && folds_units(reconstruct);
  reconstruct.window = {is_folded ? WindowKind::kHalfBlock : WindowKind::kNone};
  if (reconstruct.solver == Solver::kLiarAdamW) reconstruct.solver = Solver::kLiar;
  reconstruct.propagation = Propagation::kDense;
  reconstruct.lr = ReconstructOptions{}.lr;
  reconstruct.validation_fraction = std::max(reconstruct.validation_fraction, kLeastHeldOut);
  return trial;
}

}  // namespace

std::vector<AllocatedUnits> allocated_units(const Architecture& architecture,
                                            const PruneOptions& prune, Experts experts) {
  std::vector<AllocatedUnits> all;
  for (int half = 0; half < 2 * architecture.num_blocks; ++half) {
    bool is_first = true;
    for (const auto& [units, share] : targeted_units(architecture, half, prune)) {
      const std::string consumer = in_block(architecture, half / 2, units.consumer->name);
      const int64_t per_step = units_per_step(units, prune.head_units);
      if (share <= 0 || is_mapped(prune, consumer) || units.count <= per_step) continue;
      const double parameters = parameters_of_step(units, prune.head_units);
      if (experts == Experts::kTogether && !is_first) {
        all.back().consumers.push_back(consumer);
        all.back().group.parameters += parameters;
        continue;
      }
      all.push_back({half, units.kind, {consumer}, share, {units.count, per_step, parameters}});
      is_first = false;
    }
  }
  return all;
}

std::vector<SparsityRule> rules_of(const std::vector<AllocatedUnits>& units,
                                   const std::vector<int64_t>& steps) {
  std::vector<SparsityRule> rules;
  for (size_t index = 0; index < units.size(); ++index) {
    for (const std::string& consumer : units[index].consumers) {
      rules.push_back({consumer, share_of(units[index], steps.at(index))});
    }
  }
  return rules;
}

json allocate_by_scores(const Architecture& architecture,
                        const std::map<std::string, std::vector<double>>& scores, Recipe& recipe) {
  PruneOptions& prune = recipe.prune;
  const std::vector<AllocatedUnits> units = allocated_units(architecture, prune, Experts::kEach);
  const auto standardise =
      prune.method == PruneMethod::kSnip ? Standardise::kNo : Standardise::kYes;
  const std::vector<int64_t> steps = by_budget(
      units, prune,
      [&](const std::vector<UnitGroup>& groups, const std::vector<size_t>& indices, double share) {
        std::vector<std::vector<double>> of_groups;
        of_groups.reserve(indices.size());
        for (const size_t index : indices) {
          of_groups.push_back(scores.at(units[index].consumers.front()));
        }
        return steps_by_score(groups, std::move(of_groups), share, standardise);
      });
  for (SparsityRule& rule : rules_of(units, steps)) prune.sparsity_map.push_back(std::move(rule));
  prune.allocation = Allocation::kUniform;
  return found_of(units, steps);
}

std::vector<UnitTrial> unit_trials(const Architecture& architecture, const Recipe& recipe) {
  std::vector<UnitTrial> trials;
  for (AllocatedUnits& units : allocated_units(architecture, recipe.prune, Experts::kTogether)) {
    const int64_t steps = trial_steps(units);
    Recipe trial = trial_recipe(recipe, units, steps);
    const double removed = share_of(units, steps);
    trials.push_back({std::move(units), std::move(trial), removed});
  }
  return trials;
}

json allocate_by_losses(const std::vector<UnitTrial>& trials, const std::vector<double>& losses,
                        double dense, Recipe& recipe) {
  if (!std::isfinite(dense)) throw NumericalError("held-out loss of the dense model", 1, 1);
  std::vector<AllocatedUnits> units;
  units.reserve(trials.size());
  std::vector<double> entire;  // what it would cost if all units went
  entire.reserve(trials.size());
  for (size_t trial = 0; trial < trials.size(); ++trial) {
    const double removed = trials[trial].removed;
    units.push_back(trials[trial].units);
    const double loss = losses.at(trial);  // infinite of a trial that overflowed: it goes last
    entire.push_back(std::isfinite(loss) ? (loss - dense) / (removed * removed)
                                         : std::numeric_limits<double>::infinity());
  }
  PruneOptions& prune = recipe.prune;
  const std::vector<int64_t> steps = by_budget(
      units, prune,
      [&](const std::vector<UnitGroup>& groups, const std::vector<size_t>& indices, double share) {
        std::vector<double> of_groups;
        of_groups.reserve(indices.size());
        for (const size_t index : indices) of_groups.push_back(entire[index]);
        return steps_by_loss(groups, of_groups, share);
      });
  json found = found_of(units, steps);
  for (size_t trial = 0; trial < trials.size(); ++trial) {
    found[trial]["tried"] = trials[trial].removed;
    found[trial]["loss"] = finite_or_null(losses[trial]);
  }
  for (SparsityRule& rule : rules_of(units, steps)) prune.sparsity_map.push_back(std::move(rule));
  prune.allocation = Allocation::kUniform;
  prune.unit_sparsity = 0;
  return {{"dense_loss", dense}, {"halves", found}};
}

}  // namespace coppice
