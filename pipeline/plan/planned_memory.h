// Memory and disk that settings take, item by item.
#pragma once

#include "pipeline/plan/run_plan.h"

namespace coppice {

/// Fills ram, device, scratch, output and mapped_bytes for the plan's settings. Pure function.
void add_memory(const PlanInputs& inputs, RunPlan& plan);

}  // namespace coppice
