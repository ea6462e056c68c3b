#include "pipeline/resident_budget.h"

#include "pipeline/errors.h"  // BudgetError
#include "pipeline/heap.h"
#include "pipeline/plan/plan_inputs.h"  // ram_limit
#include "pipeline/telemetry/process.h"

namespace coppice {
namespace {

// Resident beside what is counted, and freed pages that the allocator keeps: as in
// plan/planned_memory.cpp.
constexpr uint64_t kGrowthBytes = uint64_t{48} << 20;
constexpr double kAllocatorShare = 0.06;

uint64_t stored_bytes(const SourceModel& model) {
  uint64_t bytes = 0;
  const auto add = [&](const NamedShape& tensor) {
    if (!tensor.is_added) bytes += model.checkpoint.tensor(tensor.name).bytes;
  };
  for (const NamedShape& tensor : outer_tensors(model.architecture)) add(tensor);
  for (int block = 0; block < model.architecture.num_blocks; ++block) {
    for (const NamedShape& tensor : block_tensors(model.architecture, block)) add(tensor);
  }
  return bytes;
}

}  // namespace

uint64_t with_allocator(double bytes) { return uint64_t(bytes * (1 + kAllocatorShare)); }

ResidentBudget resident_budget(const SourceModel& model, const std::vector<PlanItem>& host,
                               const std::vector<PlanItem>& work, const ResourceOptions& resources,
                               const Device& device) {
  release_free_memory();
  const uint64_t process = resident_bytes();
  const RamLimit limit = ram_limit(resources, process);
  ResidentBudget budget;
  budget.ram = {
      "RAM", {{"program, libraries, threads", process + kGrowthBytes}}, limit.bytes, limit.name};
  budget.ram.items.insert(budget.ram.items.end(), host.begin(), host.end());
  std::vector<PlanItem>& place = device.is_host() ? budget.ram.items : budget.device.items;
  place.push_back({"the model as it is stored", stored_bytes(model)});
  place.insert(place.end(), work.begin(), work.end());
  budget.device.name = "device memory";
  const uint64_t granted = resources.vram_budget_bytes, free = device.free_bytes();
  const bool is_given = granted > 0 && granted <= free;
  budget.device.limit = is_given ? granted : free;
  budget.device.limit_name = is_given ? "--vram-budget" : "free on the device";
  return budget;
}

void require_fits(const ResidentBudget& budget, const std::string& what,
                  const std::string& advice) {
  std::string text;
  for (const PlannedResource* resource : {&budget.ram, &budget.device}) {
    if (!resource->items.empty() && !resource->fits()) {
      text += "\n  " + complaint_about(*resource);
    }
  }
  if (!text.empty()) throw BudgetError(what + text + "\n  " + advice);
}

}  // namespace coppice
