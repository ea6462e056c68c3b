#include "stages/stage_table.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "stages/propagate.h"  // adapt: what the next window starts from
#include "stages/propagation.h"
#include "stages/prune.h"          // adapt: masks of single weights
#include "stages/prune_units.h"    // adapt: masks of whole neurons and heads
#include "stages/reconstruct.h"    // adapt: kept weights
#include "stages/remove_layers.h"  // adapt: masks of whole layers

namespace coppice {
namespace {

/// Product names of the bits that `needed` has and `given` has not.
std::string missing_products(Products needed, Products given) {
  static constexpr struct {
    Products product;
    const char* name;
  } kNames[] = {{Products::kBoundaries, "boundaries"}, {Products::kStatistics, "statistics"},
                {Products::kMasks, "masks"},           {Products::kAdapted, "adapted weights"},
                {Products::kGram, "Gram matrices"},    {Products::kSums, "sums"}};
  std::string missing;
  for (const auto& [product, name] : kNames) {
    if (!contains(needed, product) || contains(given, product)) continue;
    missing += (missing.empty() ? "" : ", ") + std::string(name);
  }
  return missing;
}

std::unique_ptr<Stage> prune_stage(const PruneOptions& prune, KeepMasks keep) {
  if (removes_units(prune.method)) return std::make_unique<PruneUnits>(prune, keep);
  if (prune.method == PruneMethod::kSimilarity) return std::make_unique<RemoveLayers>(prune, keep);
  return std::make_unique<Prune>(prune, keep);
}

/// What calibration has to gather for the stages, from the stream they want it of.
Calibrate::Options statistics_of(const PruneOptions& prune, const ReconstructOptions& reconstruct) {
  const bool has_reconstruction = reconstruct.window.kind != WindowKind::kNone;
  Products wanted = prune_stage(prune, KeepMasks::kNo)->needs();
  if (has_reconstruction) wanted = wanted | Reconstruct(reconstruct).needs();
  Calibrate::Options options;
  options.stream = statistics_stream(prune, reconstruct);
  if (contains(wanted, Products::kStatistics)) options.statistics = Calibrate::Statistics::kSquares;
  if (contains(wanted, Products::kGram)) options.statistics = Calibrate::Statistics::kGram;
  options.wants_sums = contains(wanted, Products::kSums);
  // Which layers go is not known yet: this is for who will decide it.
  options.wants_similarities =
      prune.method == PruneMethod::kSimilarity && prune.removed_halves.empty();
  // Also where nothing is reconstructed: the same matrices serve all recipes of a sweep.
  options.held_out_fraction = reconstruct.validation_fraction;
  return options;
}

/// `forward` may be null. What an adapted prefix hands on are boundaries, too.
void require_fed(const Stage* forward, const ReconstructOptions& reconstruct,
                 const std::vector<std::unique_ptr<Stage>>& stages) {
  Products given = forward == nullptr ? Products::kNone : forward->gives();
  if (propagates(reconstruct)) given = given | Products::kBoundaries;
  for (const auto& stage : stages) {
    if (!contains(given, stage->needs())) {
      throw std::logic_error("stage '" + std::string(stage->name()) + "' needs " +
                             missing_products(stage->needs(), given) +
                             ", which no stage before it gives");
    }
    given = given | stage->gives();
  }
}

}  // namespace

std::vector<std::unique_ptr<Stage>> adapt_stages(const PruneOptions& prune,
                                                 const ReconstructOptions& reconstruct) {
  std::vector<std::unique_ptr<Stage>> stages;
  const bool has_reconstruction = reconstruct.window.kind != WindowKind::kNone;
  if (statistics_stream(prune, reconstruct) == Stream::kPropagated) {
    const Calibrate::Options options = statistics_of(prune, reconstruct);
    if (options.statistics != Calibrate::Statistics::kNone) {
      stages.push_back(std::make_unique<Calibrate>(options));
    }
  }
  stages.push_back(prune_stage(prune, has_reconstruction ? KeepMasks::kYes : KeepMasks::kNo));
  if (has_reconstruction) {
    stages.push_back(std::make_unique<Reconstruct>(reconstruct));
  }
  if (propagates(reconstruct)) stages.push_back(std::make_unique<Propagate>());
  require_fed(forward_stage(prune, reconstruct).get(), reconstruct, stages);
  return stages;
}

std::unique_ptr<Stage> forward_stage(const PruneOptions& prune,
                                     const ReconstructOptions& reconstruct,
                                     Calibrate::Convert convert) {
  Calibrate::Options options = statistics_of(prune, reconstruct);
  const bool are_targets = reconstruct.propagation == Propagation::kMixed &&
                           reconstruct.window.kind != WindowKind::kNone;
  const bool are_statistics =
      options.stream == Stream::kDense && options.statistics != Calibrate::Statistics::kNone;
  if (propagates(reconstruct) && !are_targets && !are_statistics) return nullptr;
  if (options.stream == Stream::kPropagated) options = {};  // the adapted windows gather it
  options.convert = convert;
  return std::make_unique<Calibrate>(options);
}

std::unique_ptr<Stage> forward_stage(const std::vector<VariantOptions>& variants,
                                     Calibrate::Convert convert) {
  const VariantOptions& first = variants.front();
  if (variants.size() == 1) return forward_stage(first.prune, first.reconstruct, convert);
  Calibrate::Options all;
  for (const auto& [prune, reconstruct] : variants) {
    const Calibrate::Options options = statistics_of(prune, reconstruct);
    if (propagates(reconstruct) ||
        options.held_out_fraction != first.reconstruct.validation_fraction) {
      throw std::logic_error("these variants cannot share a dense forward");
    }
    all.statistics = std::max(all.statistics, options.statistics);
    all.wants_sums = all.wants_sums || options.wants_sums;
    all.wants_similarities = all.wants_similarities || options.wants_similarities;
    all.held_out_fraction = options.held_out_fraction;
  }
  all.convert = convert;
  return std::make_unique<Calibrate>(all);
}

std::vector<HalfRange> windows_of(HalfRange span, const Window& window) {
  std::vector<HalfRange> windows;
  for (int first = span.first; first < span.last; first = windows.back().last) {
    // Pruning alone looks at one linear at a time: it takes the smaller window.
    const int last =
        window.kind == WindowKind::kBlock ? 2 * (first / 2 + window.blocks) : first + 1;
    windows.push_back({first, std::min(last, span.last)});
  }
  return windows;
}

}  // namespace coppice
