#include "pipeline/survey.h"

#include <cmath>
#include <set>

#include "configs/errors.h"
#include "pipeline/unit_allocation.h"
#include "stages/allocation.h"
#include "stages/layer_similarity.h"

namespace coppice {
namespace {

using nlohmann::json;

json close_rate(size_t index, const std::map<int, json>& surveys, Recipe& recipe) {
  std::map<double, std::pair<double, int>> sums;  // by rate: Σ log error, windows
  for (const auto& [block, found] : surveys) {
    for (const json& trial : found.at("trials")) {
      if (trial.at("recipe").get<size_t>() != index) continue;
      auto& [sum, count] = sums[trial.at("lr").get<double>()];
      for (const json& error : trial.at("log_errors")) {
        sum += error.get<double>();
        ++count;
      }
    }
  }
  json rates = json::array();
  double best = 0;
  for (const auto& [lr, errors] : sums) {  // ascending: of equal ones the smaller stays
    if (errors.second == 0) {
      throw ConfigError(
          "reconstruct.lr: auto: nothing of the first, middle and last block is pruned and "
          "reconstructed, so no rate could be tried; state one");
    }
    const double mean = errors.first / errors.second;
    rates.push_back({{"lr", lr}, {"error", std::exp(mean)}});
    if (recipe.reconstruct.lr > 0 && mean >= best) continue;
    best = mean;
    recipe.reconstruct.lr = lr;
  }
  return {{"tried", rates}, {"chosen", recipe.reconstruct.lr}};
}

json close_allocation(size_t index, const std::map<int, json>& surveys, Recipe& recipe) {
  json ratios = json::array();  // null: nothing is targeted there
  std::vector<double> known;
  for (const auto& [block, found] : surveys) {
    for (const json& ratio : found.at("outlier_ratios").at(index)) {
      ratios.push_back(ratio);
      if (!ratio.is_null()) known.push_back(ratio);
    }
  }
  const std::vector<double> sparsities =
      owl_sparsities(known, recipe.prune.sparsity, recipe.prune.owl_lambda);
  auto next = sparsities.begin();
  for (const json& ratio : ratios) {
    recipe.prune.block_sparsities.push_back(ratio.is_null() ? recipe.prune.sparsity : *next++);
  }
  return {{"outlier_ratios", ratios}, {"block_sparsities", recipe.prune.block_sparsities}};
}

json close_units(size_t index, const std::map<int, json>& surveys, const Architecture& architecture,
                 Recipe& recipe) {
  std::map<std::string, std::vector<double>> scores;  // by consumer
  for (const auto& [block, found] : surveys) {
    for (const auto& [consumer, of_steps] : found.at("unit_scores").at(index).items()) {
      scores[consumer] = of_steps.get<std::vector<double>>();
    }
  }
  return allocate_by_scores(architecture, scores, recipe);
}

json removed_layers(const PruneOptions& prune) {
  json removed = json::array();
  for (const int half : prune.removed_halves) {
    const bool is_attention = half_of(half) == Half::kAttention;
    const bool is_block = prune.layer_units == LayerUnits::kBlocks;
    if (is_block && !is_attention) continue;
    const char* layer = is_block ? "block" : is_attention ? "attention" : "mlp";
    removed.push_back({{"block", half / 2}, {"layer", layer}});
  }
  return removed;
}

json close_layers(const std::map<int, json>& surveys, Recipe& recipe) {
  std::vector<LayerSimilarities> similarities;
  json found = {{"attention", json::array()}, {"mlp", json::array()}, {"block", json::array()}};
  for (const auto& [first_block, survey] : surveys) {
    for (const json& block : survey.at("similarities")) {
      for (auto& [layer, values] : found.items()) values.push_back(block.at(layer));
      similarities.push_back({block.at("attention"), block.at("mlp"), block.at("block")});
    }
  }
  recipe.prune.removed_halves = most_similar_halves(similarities, recipe.prune);
  found["removed"] = removed_layers(recipe.prune);
  return found;
}

}  // namespace

bool wants_outliers(const Recipe& recipe) { return recipe.prune.allocation == Allocation::kOwl; }
bool wants_scores(const Recipe& recipe) { return recipe.prune.allocation == Allocation::kGlobal; }
bool wants_rate(const Recipe& recipe) { return recipe.reconstruct.lr == 0; }

bool wants_similarities(const Recipe& recipe) {
  return recipe.prune.method == PruneMethod::kSimilarity && recipe.prune.removed_halves.empty();
}

bool is_open(const Recipe& recipe) {
  return wants_outliers(recipe) || wants_scores(recipe) || wants_rate(recipe) ||
         wants_similarities(recipe);
}

const std::vector<double>& tried_rates() {
  static const std::vector<double> kRates = {1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3};
  return kRates;
}

std::vector<int> trial_blocks(int num_blocks) {
  const std::set<int> blocks = {0, num_blocks / 2, num_blocks - 1};
  return {blocks.begin(), blocks.end()};
}

std::vector<SurveyedRecipe> close_recipes(const std::vector<Recipe>& recipes,
                                          const std::map<int, json>& surveys,
                                          const Architecture& architecture) {
  std::vector<SurveyedRecipe> closed;
  closed.reserve(recipes.size());
  for (size_t index = 0; index < recipes.size(); ++index) {
    SurveyedRecipe& result = closed.emplace_back(SurveyedRecipe{recipes[index], {}});
    if (wants_rate(recipes[index])) {
      result.found["lr"] = close_rate(index, surveys, result.recipe);
    }
    if (wants_outliers(recipes[index])) {
      result.found["allocation"] = close_allocation(index, surveys, result.recipe);
    }
    if (wants_scores(recipes[index])) {
      result.found["allocation"] = close_units(index, surveys, architecture, result.recipe);
    }
    if (wants_similarities(recipes[index])) {
      result.found["similarity"] = close_layers(surveys, result.recipe);
    }
  }
  return closed;
}

}  // namespace coppice
