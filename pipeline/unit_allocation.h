// One budget of neurons and heads for the whole model: what it is spread over, and how.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "stages/model/architecture.h"
#include "stages/units/unit_budget.h"
#include "stages/units/unit_layout.h"

namespace coppice {

/// Units that give together: those of one consumer, or of all experts of a half.
struct AllocatedUnits {
  int half = 0;
  UnitLayout::Kind kind = UnitLayout::Kind::kFfn;
  std::vector<std::string> consumers;  // full names without ".weight"
  double share = 0;                    // of the recipe: of these that shall go, on average
  UnitGroup group;
};

/// What an allocation over the model decides, half by half: units of targeted consumers, but those
/// that the sparsity map names. An expert's are its own, or go with their half's.
enum class Experts { kEach, kTogether };
std::vector<AllocatedUnits> allocated_units(const Architecture& architecture,
                                            const PruneOptions& prune, Experts experts);

/// Rules for the sparsity map that take so many steps of each. `steps`: by index.
std::vector<SparsityRule> rules_of(const std::vector<AllocatedUnits>& units,
                                   const std::vector<int64_t>& steps);

/// Closes `allocation: global` by what a survey found: step_scores() by consumer. SNIP's scores are
/// compared as they are, for they are shares of one loss; all others are standardised. Returns what
/// was found, for the report.
nlohmann::json allocate_by_scores(const Architecture& architecture,
                                  const std::map<std::string, std::vector<double>>& scores,
                                  Recipe& recipe);

// ---- trials

/// One that takes from one half alone, half of its units or the recipe's share where that is more,
/// and is judged as a whole model.
struct UnitTrial {
  AllocatedUnits units;
  Recipe recipe;       // statistics and activations of the dense model; folded, but not trained
  double removed = 0;  // share of the units that go
};

/// Of a recipe with `allocation: measured`, one a half that has such units.
std::vector<UnitTrial> unit_trials(const Architecture& architecture, const Recipe& recipe);

/// Closes `allocation: measured`: `losses` by trial (not finite of one that overflowed), and that
/// of the dense model: NumericalError if that is not finite. Returns what was found, for the
/// report.
nlohmann::json allocate_by_losses(const std::vector<UnitTrial>& trials,
                                  const std::vector<double>& losses, double dense, Recipe& recipe);

}  // namespace coppice
