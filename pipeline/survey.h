// What a recipe leaves open, and how what a survey of the dense model found closes it.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "configs/recipe.h"
#include "stages/model/architecture.h"

namespace coppice {

bool wants_outliers(const Recipe& recipe);      // `allocation: owl`
bool wants_scores(const Recipe& recipe);        // `allocation: global`
bool wants_rate(const Recipe& recipe);          // `lr: auto`
bool wants_similarities(const Recipe& recipe);  // `method: similarity`
/// Whether the recipe wants a survey.
bool is_open(const Recipe& recipe);

/// The rates that `lr: auto` tries, in order.
const std::vector<double>& tried_rates();

/// The blocks that they are tried on: first, middle and last, each once, ascending.
std::vector<int> trial_blocks(int num_blocks);

/// A recipe whose open parts are closed, and how, for the report.
struct SurveyedRecipe {
  Recipe recipe;
  nlohmann::json found;  // null where nothing was open
};

/// `surveys`: by block, what SurveyPass recorded. The rate with the smallest geometric mean over
/// the trials' windows of (held-out loss / that of the pruned weights); of equal ones the smaller.
/// Layers go by most_similar_halves(). Pure function.
std::vector<SurveyedRecipe> close_recipes(const std::vector<Recipe>& recipes,
                                          const std::map<int, nlohmann::json>& surveys,
                                          const Architecture& architecture);

}  // namespace coppice
