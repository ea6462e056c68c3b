// What is said of a run that does not fit.
#pragma once

#include "pipeline/plan/run_plan.h"

namespace coppice {

/// Throws PlanRefused: what there is too little of, item by item, for the run and for the scoring
/// of units before it; and what would fit: so much memory, smaller windows, fewer of the text.
/// Whoever grants what it says is not refused again. inputs   of a run that no smallest settings
/// fit, or whose units cannot be scored
[[noreturn]] void refuse(const PlanInputs& inputs);

}  // namespace coppice
