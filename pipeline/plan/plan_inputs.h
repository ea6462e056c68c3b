// Gathers what a plan is made of: headers, recipe, the machine and its disks.
#pragma once

#include <filesystem>

#include "pipeline/machine.h"
#include "pipeline/model_spans.h"
#include "pipeline/output_directory.h"
#include "pipeline/plan/run_plan.h"

namespace coppice {

/// What of a run is left to do.
struct WorkLeft {
  std::vector<int> blocks;     // in order
  int outer_copies = 1;        // of embedding, head and the rest, still to be made
  uint64_t scratch_bytes = 0;  // hidden states that lie in the scratch directory already
  bool scores_units = false;   // by the loss, with the whole model in memory, before anything else
};

/// What the process may have of the RAM in all, and who says so: the budget, else nine tenths of
/// what is available beside the `process_bytes` it has.
struct RamLimit {
  uint64_t bytes = 0;
  std::string name;
};
RamLimit ram_limit(const ResourceOptions& resources, uint64_t process_bytes);

/// What is made in one go.
struct PlannedJob {
  std::vector<Recipe> recipes;  // at least one
  int num_written = 1;          // of whose models checkpoints are written: all, or none
  bool is_judged = false;
  uint64_t process_bytes = 0;  // resident before anything was worked on; 0: as it is now
};

/// All of it.
WorkLeft all_work(const Architecture& architecture, const PlannedJob& job);

/// Everything but rates. `output` and `scratch` need not exist: the nearest directory above counts.
/// Throws IoError.
PlanInputs plan_inputs(const SourceModel& model, const PlannedJob& job, const ModelSpans& spans,
                       int64_t windows, const Machine& machine, const OutputDirectory& output,
                       const std::filesystem::path& scratch, const WorkLeft& left);

/// Measures the machine for `inputs.rates`: up to ten seconds, at most 64 MiB, and a quarter of
/// what the plan counts, written to the scratch directory and removed; of several recipes one is
/// rehearsed, on a slice that holds no more than the run, by the plan that was made without rates.
/// Nothing where `resources.probe` is off.
void measure_rates(const SourceModel& model, Machine& machine, const std::filesystem::path& scratch,
                   const RunPlan& unmeasured, PlanInputs& inputs);

}  // namespace coppice
