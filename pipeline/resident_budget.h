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

/// The program and `host` in RAM; "the model as it is stored" and `work` where the device computes;
/// where that is not the host, the largest tensor in RAM on its way. From headers and what the
/// machine has now; nothing is refused here.
/// process_bytes   resident before anything was worked on; 0: as it is now
ResidentBudget resident_budget(const SourceModel& model, const std::vector<PlanItem>& host,
                               const std::vector<PlanItem>& work, const ResourceOptions& resources,
                               const Device& device, uint64_t process_bytes = 0);

/// Of what stages hold, with what the allocator keeps of it.
uint64_t with_allocator(double bytes);

/// Where it does not fit: `what` does not, every item of what is too large, and `advice`. Empty
/// where it does.
std::string refusal_of(const ResidentBudget& budget, const std::string& what,
                       const std::string& advice);

/// Throws BudgetError with refusal_of() where it does not fit.
void require_fits(const ResidentBudget& budget, const std::string& what, const std::string& advice);

}  // namespace coppice
