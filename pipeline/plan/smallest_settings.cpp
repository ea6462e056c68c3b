#include "pipeline/plan/smallest_settings.h"

#include <algorithm>

#include "pipeline/plan/planned_memory.h"
#include "pipeline/plan/planned_time.h"
#include "pipeline/plan/planned_work.h"

namespace coppice {
namespace {

RunSettings smallest_buffers(const PlanInputs& in) {
  RunSettings settings;
  settings.slots = std::max(1, in.resources().prefetch_blocks);
  settings.outputs = in.devices;  // each device adapts into one
  settings.windows_ahead = settings.windows_behind = 1;
  settings.convert = Calibrate::Convert::kOnUse;
  return settings;
}

}  // namespace

RunPlan plan_with(const PlanInputs& in, const RunSettings& settings) {
  RunPlan plan;
  plan.settings = settings;
  add_memory(in, plan);
  add_times(in, plan);
  return plan;
}

std::vector<RunSettings> smallest_settings(const PlanInputs& in) {
  const std::string& wanted = in.resources().half_block_targets;
  const bool has_targets = has_half_block_boundaries(in);
  std::vector<KeptActivations> ways = {KeptActivations::kAll};
  if (has_windows_of_halves(in)) ways.push_back(KeptActivations::kOfOneHalf);
  std::vector<RunSettings> all;
  for (const KeptActivations kept : ways) {
    RunSettings settings = smallest_buffers(in);
    settings.kept_activations = kept;
    if (!has_targets || wanted != "recomputed") all.push_back(settings);
    if (has_targets && wanted != "recomputed") {
      // A disk that is too small for the targets may do when they stay in memory.
      all.push_back(settings);
      all.back().targets_in_ram = in.windows;
    }
    if (has_targets && wanted != "cached") {
      all.push_back(settings);
      all.back().recompute_targets = true;
    }
  }
  return all;
}

}  // namespace coppice
