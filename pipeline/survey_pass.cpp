#include "pipeline/survey_pass.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "stages/allocation.h"
#include "stages/calibrate.h"
#include "stages/units/targeted_units.h"
#include "stages/units/unit_scores.h"

namespace coppice {
namespace {

using nlohmann::json;

std::vector<SurveyPass::Trial> trials_of(const std::vector<Recipe>& recipes) {
  std::vector<SurveyPass::Trial> trials;
  for (size_t recipe = 0; recipe < recipes.size(); ++recipe) {
    if (!wants_rate(recipes[recipe])) continue;
    for (const double lr : tried_rates()) trials.push_back({recipe, lr});
  }
  return trials;
}

bool wants_sums(const Recipe& recipe) {
  return wants_scores(recipe) && recipe.prune.method == PruneMethod::kFlap;
}

bool wants_statistics(const Recipe& recipe) {
  return wants_outliers(recipe) || wants_scores(recipe);
}

/// One that only makes the dense forward of trial blocks measure similarities.
Recipe measuring_similarities(Recipe recipe) {
  recipe.reconstruct.window = {WindowKind::kNone};
  recipe.reconstruct.propagation = Propagation::kDense;
  return recipe;
}

/// What the pass adapts, a recipe a trial; and, where weights or units are scored, one that only
/// makes the dense forward of trial blocks gather what they are scored with; and the same of
/// layers.
std::vector<Recipe> recipes_of(const std::vector<Recipe>& recipes) {
  std::vector<Recipe> all;
  for (const auto& [recipe, lr] : trials_of(recipes)) {
    Recipe& trial = all.emplace_back(recipes[recipe]);
    trial.reconstruct.lr = lr;
    trial.prune.export_masks = false;
  }
  const auto similar = std::find_if(recipes.begin(), recipes.end(), wants_similarities);
  if (similar != recipes.end()) all.push_back(measuring_similarities(*similar));
  if (std::none_of(recipes.begin(), recipes.end(), wants_statistics)) return all;
  Recipe& scored = all.emplace_back(recipes.front());
  const bool has_sums = std::any_of(recipes.begin(), recipes.end(), wants_sums);
  scored.prune.method = has_sums ? PruneMethod::kFlap : PruneMethod::kWanda;
  scored.reconstruct.window = {WindowKind::kNone};
  return all;
}

/// Of the dense forward of all other blocks; none where nobody asks.
std::optional<Calibrate::Options> measured_options(const std::vector<Recipe>& recipes) {
  const auto any = [&](bool (*wants)(const Recipe&)) {
    return std::any_of(recipes.begin(), recipes.end(), wants);
  };
  if (!any(wants_statistics) && !any(wants_similarities)) return std::nullopt;
  return Calibrate::Options{.statistics = any(wants_statistics) ? Calibrate::Statistics::kSquares
                                                                : Calibrate::Statistics::kNone,
                            .wants_sums = any(wants_sums),
                            .wants_similarities = any(wants_similarities)};
}

/// By block, {attention, mlp, block}.
json similarities_of(const SpanJob& job) {
  json similarities = json::array();
  for (const auto& [block, of_block] : job.similarities) {
    similarities.push_back(
        {{"attention", of_block.attention}, {"mlp", of_block.mlp}, {"block", of_block.block}});
  }
  return similarities;
}

/// Of a matrix that no held-out token reaches there is none.
json log_errors(const std::vector<WindowReport>& windows) {
  json errors = json::array();
  for (const WindowReport& window : windows) {
    const double error =
        std::log(window.validation_reconstructed) - std::log(window.validation_pruned);
    if (std::isfinite(error)) errors.push_back(error);
  }
  return errors;
}

}  // namespace

SurveyPass::SurveyPass(PassContext& context, const std::vector<Recipe>& recipes,
                       const OutputDirectory& layout)
    : BlockPass(context, recipes_of(recipes)),
      open_recipes_(recipes),
      trials_(trials_of(recipes)),
      layout_(layout) {
  if (std::optional<Calibrate::Options> options = measured_options(recipes)) {
    options->convert = context.plan.settings.convert;
    score_statistics_ = std::make_unique<Calibrate>(*options);
  }
}

bool SurveyPass::has_trials(int first_block, int last_block) const {
  if (trials_.empty()) return false;
  const std::vector<int> blocks = trial_blocks(int(context_.model.architecture.num_blocks));
  return std::any_of(blocks.begin(), blocks.end(),
                     [&](int block) { return first_block <= block && block < last_block; });
}

bool SurveyPass::is_recorded(const ModelSpan& span) const {
  return context_.state.surveys().contains(span.first_block);
}

bool SurveyPass::is_to_adapt(const ModelSpan& span) const {
  return span.kind == SpanKind::kBlock && has_trials(span.first_block, span.last_block);
}

int SurveyPass::num_steps(const ModelSpan&) const { return 1; }

const Stage* SurveyPass::dense_stage(const ModelSpan& span) const {
  const Stage* trials = BlockPass::dense_stage(span);
  return score_statistics_ && !is_to_adapt(span) ? score_statistics_.get() : trials;
}

std::vector<Variant> SurveyPass::variants_of(GraphSpan& span) {
  std::vector<Variant> variants = BlockPass::variants_of(span);
  variants.resize(trials_.size());
  return variants;
}

bool SurveyPass::is_wanted(HalfRange window) const {
  return has_trials(window.first_block(), window.last_block());
}

void SurveyPass::begin(GraphSpan& span, size_t, Variant& variant) {
  const ModelSpan& what = work_of(span).span;
  for (int block = what.first_block; block < what.last_block; ++block) {
    variant.places.merge(layout_.places(layout_.part_of(span.output, what.first_block, block),
                                        block, device_of(span)));
  }
}

void SurveyPass::end(GraphSpan&, size_t recipe, Variant& variant) {
  tried_.push_back({{"recipe", trials_[recipe].recipe},
                    {"lr", trials_[recipe].lr},
                    {"log_errors", log_errors(variant.windows)}});
}

json SurveyPass::unit_scores(const SpanJob& job) const {
  static const std::map<std::string, at::Tensor> kNone;
  const auto& given = context_.unit_scores == nullptr ? kNone : *context_.unit_scores;
  json scores = json::array();
  for (const Recipe& recipe : open_recipes_) {
    json of_recipe = json::object();
    for (int half = job.halves.first; wants_scores(recipe) && half < job.halves.last; ++half) {
      for (const auto& [units, share] : targeted_units(job.architecture, half, recipe.prune)) {
        if (share <= 0) continue;
        const at::Tensor of_units = score_units(job, half, units, recipe.prune, given).scores;
        of_recipe[in_block(job.architecture, half / 2, units.consumer->name)] =
            step_scores(of_units, units, recipe.prune.head_units);
      }
    }
    scores.push_back(of_recipe);
  }
  return scores;
}

void SurveyPass::leave(GraphSpan& span, SpanJob& job) {
  json ratios = json::array();
  for (const Recipe& recipe : open_recipes_) {
    json of_recipe = json::array();
    for (int block = job.halves.first_block(); block < job.halves.last_block(); ++block) {
      if (!wants_outliers(recipe)) continue;
      const std::optional<double> ratio = outlier_ratio(job, block, recipe.prune);
      of_recipe.push_back(ratio ? json(*ratio) : json());
    }
    ratios.push_back(of_recipe);
  }
  const json scores = unit_scores(job);
  std::lock_guard lock(found_mutex_);
  found_[work_of(span).span.first_block] = {{"outlier_ratios", ratios},
                                            {"unit_scores", scores},
                                            {"similarities", similarities_of(job)},
                                            {"trials", tried_}};
  tried_ = json::array();
}

void SurveyPass::record(GraphSpan& span) {
  const ModelSpan& what = work_of(span).span;
  std::unique_lock lock(found_mutex_);
  const auto found = found_.extract(what.first_block);
  lock.unlock();
  context_.space.with_room(context_.work, 0,
                           [&] { context_.state.record_survey(what.first_block, found.mapped()); });
  context_.progress.done(fmt::format("survey: {}", what.name));
}

}  // namespace coppice
