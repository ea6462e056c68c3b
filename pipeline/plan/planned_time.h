// What a run computes and moves, and how long that takes by the rates of a machine.
#pragma once

#include "pipeline/plan/run_plan.h"

namespace coppice {

/// Fills stages, traffic and, where rates are known, seconds, for the plan's settings. Wants its
/// memory (add_memory()). Pure function.
void add_times(const PlanInputs& inputs, RunPlan& plan);

}  // namespace coppice
