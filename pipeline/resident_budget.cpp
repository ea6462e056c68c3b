#include "pipeline/resident_budget.h"

#include <algorithm>

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

struct StoredBytes {
  uint64_t all = 0;
  uint64_t largest = 0;  // tensor
};

StoredBytes stored_bytes(const SourceModel& model) {
  StoredBytes bytes;
  const auto add = [&](const NamedShape& tensor) {
    if (tensor.is_added) return;
    const uint64_t more = model.checkpoint.tensor(tensor.name).bytes;
    bytes.all += more;
    bytes.largest = std::max(bytes.largest, more);
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
                               const Device& device, uint64_t process_bytes) {
  release_free_memory();
  const uint64_t now = resident_bytes();
  const uint64_t process = process_bytes > 0 ? process_bytes : now;
  const RamLimit limit = ram_limit(resources, now);
  const StoredBytes stored = stored_bytes(model);
  ResidentBudget budget;
  budget.ram = {
      "RAM", {{"program, libraries, threads", process + kGrowthBytes}}, limit.bytes, limit.name};
  budget.ram.items.insert(budget.ram.items.end(), host.begin(), host.end());
  if (!device.is_host()) {  // read whole, then moved
    budget.ram.items.push_back({"a tensor on its way to the device", stored.largest});
  }
  std::vector<PlanItem>& place = device.is_host() ? budget.ram.items : budget.device.items;
  place.push_back({"the model as it is stored", stored.all});
  place.insert(place.end(), work.begin(), work.end());
  budget.device.name = "device memory";
  const uint64_t granted = resources.vram_budget_bytes, free = device.free_bytes();
  const bool is_given = granted > 0 && granted <= free;
  budget.device.limit = is_given ? granted : free;
  budget.device.limit_name = is_given ? "--vram-budget" : "free on the device";
  return budget;
}

std::string refusal_of(const ResidentBudget& budget, const std::string& what,
                       const std::string& advice) {
  std::string text;
  for (const PlannedResource* resource : {&budget.ram, &budget.device}) {
    if (!resource->items.empty() && !resource->fits()) {
      text += "\n  " + complaint_about(*resource);
    }
  }
  return text.empty() ? "" : what + text + "\n  " + advice;
}

void require_fits(const ResidentBudget& budget, const std::string& what,
                  const std::string& advice) {
  const std::string refusal = refusal_of(budget, what, advice);
  if (!refusal.empty()) throw BudgetError(refusal);
}

}  // namespace coppice
