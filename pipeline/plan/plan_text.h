// A plan for a person and for a program.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "pipeline/plan/run_plan.h"

namespace coppice {

/// Resources with their items and limits, settings, times and what bounds them; one screen.
std::string plan_text(const RunPlan& plan, const PlanInputs& inputs);

/// The same with stable keys, SI units: `ram`, `device`, `scratch`, `output` {bytes, limit_bytes,
/// limit, items[] {name, bytes}}, `bytes_read`, `bytes_written`, `settings`, `stages`[] {name,
/// seconds, bound}, `seconds`, `rates`. Seconds are null where nothing was measured.
nlohmann::json plan_json(const RunPlan& plan, const PlanInputs& inputs);

}  // namespace coppice
