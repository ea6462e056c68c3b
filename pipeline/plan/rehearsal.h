// Runs the recipe's own stages on a slice of a block: what they take beside what rates say.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/device/device.h"
#include "pipeline/plan/rates.h"
#include "stages/model/architecture.h"

namespace coppice {

/// A block with about `share` (above 0) of the heads and neurons of `architecture`, of its own
/// width and head size: whole key-value groups while there is more than one, then query heads of
/// it; at least one head and 64 neurons.
Architecture slice_of(const Architecture& architecture, double share);

struct RehearsalLimits {
  double seconds = 0.5;                // wanted of one pass over the stages, by the rates
  uint64_t bytes = uint64_t{1} << 30;  // of the device's memory, at most
};

/// Seconds taken / seconds by rates, by the stage's name.
using StageFactors = std::map<std::string, double>;

/// Factors of each of a few passes over the recipe's stages: dense forward, pruning and one step of
/// reconstruction, on random weights and hidden states of the model's dtype in windows of `seqlen`
/// tokens. A slice has the costs of its block in about the same proportions; what rates leave out
/// (short products that pass all weights, memory that comes and goes, a call's own time) is in the
/// factors. A first pass, which touches new memory, is not told; nor is a stage without work. Empty
/// where the recipe's pattern does not divide the slice, or the smallest slice is above the limits.
/// On the device's thread.
std::vector<StageFactors> rehearse(const Device& device, const Architecture& architecture,
                                   const Recipe& recipe, int64_t windows, int64_t seqlen,
                                   const Rates& rates, const RehearsalLimits& limits);

/// Of each stage the mean over the faster half of its passes: a machine that others share has slow
/// moments, of which a run meets some. Empty for no passes.
StageFactors corrections_of(const std::vector<StageFactors>& passes);

}  // namespace coppice
