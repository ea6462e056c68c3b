#include "stages/stage_table.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "stages/prune.h"        // adapt: masks
#include "stages/reconstruct.h"  // adapt: kept weights

namespace coppice {
namespace {

/// Product names of the bits that `needed` has and `given` has not.
std::string missing_products(Products needed, Products given) {
  static constexpr struct {
    Products product;
    const char* name;
  } kNames[] = {{Products::kBoundaries, "boundaries"},
                {Products::kStatistics, "statistics"},
                {Products::kMasks, "masks"},
                {Products::kAdapted, "adapted weights"},
                {Products::kGram, "Gram matrices"}};
  std::string missing;
  for (const auto& [product, name] : kNames) {
    if (!contains(needed, product) || contains(given, product)) continue;
    missing += (missing.empty() ? "" : ", ") + std::string(name);
  }
  return missing;
}

void require_fed(const Stage& forward, const std::vector<std::unique_ptr<Stage>>& stages) {
  Products given = forward.gives();
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
  const bool has_reconstruction = reconstruct.window != WindowKind::kNone;
  stages.push_back(
      std::make_unique<Prune>(prune, has_reconstruction ? KeepMasks::kYes : KeepMasks::kNo));
  if (has_reconstruction) {
    stages.push_back(std::make_unique<Reconstruct>(reconstruct));
  }
  require_fed(*forward_stage(prune, reconstruct), stages);
  return stages;
}

std::unique_ptr<Stage> forward_stage(const PruneOptions& prune,
                                     const ReconstructOptions& reconstruct,
                                     Calibrate::Convert convert) {
  const bool has_reconstruction = reconstruct.window != WindowKind::kNone;
  Products wanted = Prune(prune).needs();
  if (has_reconstruction) wanted = wanted | Reconstruct(reconstruct).needs();
  Calibrate::Options options;
  options.convert = convert;
  if (contains(wanted, Products::kStatistics)) options.statistics = Calibrate::Statistics::kSquares;
  if (contains(wanted, Products::kGram)) options.statistics = Calibrate::Statistics::kGram;
  if (has_reconstruction) options.held_out_fraction = reconstruct.validation_fraction;
  return std::make_unique<Calibrate>(options);
}

std::vector<HalfRange> windows_of(HalfRange span, WindowKind kind) {
  std::vector<HalfRange> windows;
  for (int first = span.first; first < span.last; first = windows.back().last) {
    // Pruning alone looks at one linear at a time: it takes the smaller window.
    const int last = kind == WindowKind::kBlock ? 2 * (first / 2 + 1) : first + 1;
    windows.push_back({first, std::min(last, span.last)});
  }
  return windows;
}

}  // namespace coppice
