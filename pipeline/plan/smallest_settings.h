// Where planning starts: the smallest buffers, once for every way of having targets and
// activations.
#pragma once

#include <vector>

#include "pipeline/plan/run_plan.h"

namespace coppice {

/// The plan with these settings, whether it fits or not.
RunPlan plan_with(const PlanInputs& inputs, const RunSettings& settings);

/// A run fits where one of these does, and nowhere else. In the order they are wanted: all
/// activations kept, then those of one half; of each, targets on disk, in memory, recomputed.
std::vector<RunSettings> smallest_settings(const PlanInputs& inputs);

}  // namespace coppice
