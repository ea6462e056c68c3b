// The memory that work on a whole model takes: all of it lies there.
#pragma once

#include <string>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/device/device.h"
#include "pipeline/plan/run_plan.h"
#include "pipeline/source_model.h"

namespace coppice {

/// What is needed at the peak, item by item, and what there is. On a CPU `device` has no items.
struct ResidentBudget {
  PlannedResource ram;
  PlannedResource device;
};

/// The program and `host` in RAM; "the model as it is stored" and `work` where the device computes.
/// From headers and what the machine has now; nothing is refused here.
ResidentBudget resident_budget(const SourceModel& model, const std::vector<PlanItem>& host,
                               const std::vector<PlanItem>& work, const ResourceOptions& resources,
                               const Device& device);

/// Of what stages hold, with what the allocator keeps of it.
uint64_t with_allocator(double bytes);

/// Throws BudgetError where it does not fit: `what` does not, every item of what is too large, and
/// `advice`.
void require_fits(const ResidentBudget& budget, const std::string& what, const std::string& advice);

}  // namespace coppice
