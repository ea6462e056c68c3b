// What a run will take and how it will use what there is: decided before the first read.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/errors.h"  // BudgetError
#include "pipeline/plan/rates.h"
#include "stages/calibrate.h"
#include "stages/cost.h"
#include "stages/model/architecture.h"
#include "stages/span_job.h"  // KeptActivations

namespace coppice {

/// Everything a budget decides. None of it changes a byte of the output.
struct RunSettings {
  int slots = 2;           // spans of blocks in memory at once, on each device
  int outputs = 2;         // shards in memory at once
  int windows_ahead = 4;   // hidden states decoded before they are asked for, a source
  int windows_behind = 4;  // hidden states waiting to be compressed and written
  Calibrate::Convert convert = Calibrate::Convert::kAhead;
  bool recompute_targets = false;  // hidden states inside a block are made again, not cached
  KeptActivations kept_activations = KeptActivations::kAll;  // of a window, until its gradients
  int64_t targets_in_ram = 0;  // windows of a half-block boundary kept in memory instead of on disk
  int64_t inputs_in_ram = 0;   // windows of a block boundary kept in memory beside the disk

  bool operator==(const RunSettings&) const = default;
};

struct PlanItem {
  std::string name;
  uint64_t bytes = 0;
};

/// A resource: what is needed of it at the peak, item by item, and how much may be used.
struct PlannedResource {
  std::string name;  // "RAM", "disk for the output"
  std::vector<PlanItem> items;
  uint64_t limit = 0;
  std::string limit_name;  // "--ram-budget", "free on /data"

  uint64_t bytes() const;
  bool fits() const { return bytes() <= limit; }
};

/// Needed and granted, then every item, for a person.
std::string complaint_about(const PlannedResource& resource);

/// Work over all blocks that are left to do.
struct PlannedStage {
  std::string name;
  Cost cost;
  double seconds = 0;  // 0 without rates
  std::string bound;   // what most of the time goes to: "products", "attention", "memory", "disk"
};

struct RunPlan {
  RunSettings settings;
  PlannedResource ram, device, scratch, output;  // `device` without items on a CPU
  uint64_t bytes_read = 0;
  uint64_t bytes_written = 0;
  std::vector<PlannedStage> stages;  // compute, in order; then "disk"
  double compute_seconds = 0, disk_seconds = 0;
  double seconds = 0;  // of the streaming: the longer of the two, and what cannot overlap

  /// Of `ram`: what lies beside the heap. Slots, shards, staging buffers.
  uint64_t mapped_bytes = 0;
};

/// The facts a plan is made of: headers, recipe, machine.
struct PlanInputs {
  Architecture architecture;
  std::vector<Recipe> recipes;  // at least one; they share calibration, resources, dense forward
  int64_t windows = 0;
  int64_t seqlen = 0;
  int64_t compute_bytes = 4;  // of an element
  bool is_host = true;        // the device computes in host memory
  int devices = 1;            // that blocks are handed to
  int codec_threads = 2;

  // Where the checkpoint lies: of interest, and no limit.
  uint64_t input_bytes = 0, input_free_bytes = 0;
  std::string input_place = {};  // "/models"

  int blocks_to_do = 0;  // all, unless a run is continued
  uint64_t slot_bytes = 0;
  uint64_t block_slot_bytes = 0;  // were a span one block
  uint64_t widened_bytes = 0;     // of a span's FP8 weights as bf16
  uint64_t unaligned_bytes = 0;   // of a span's weights, that a host device copies to use them
  uint64_t image_bytes = 0;       // of the shards of a span, of one recipe
  uint64_t mask_bytes = 0;        // of its bitmasks, where they are exported
  uint64_t block_read_bytes = 0;  // of all blocks to do, as the read plan has them
  uint64_t outer_bytes = 0;       // embedding, head, norm: copied and read by rows
  uint64_t output_bytes = 0;      // still to be written
  uint64_t report_bytes = 0;      // of what is known of all blocks, until the run's end
  uint64_t journal_bytes = 0;     // of the same on disk
  uint64_t process_bytes = 0;     // resident before anything is planned

  // `device_limit`: on each.
  uint64_t ram_limit = 0, device_limit = 0, scratch_limit = 0, output_limit = 0;
  std::string ram_limit_name = {}, device_limit_name = {}, scratch_limit_name = {},
              output_limit_name = {};
  bool is_ram_limit_given = false;  // by a budget: then hidden states fill what is left of it
  Rates rates = {};

  int num_written = 1;     // recipes whose shards are written
  bool is_judged = false;  // the held-out windows flow through every recipe's model
  int64_t head_rows = 0;   // of the vocabulary, that judge them at once; 0: there is no head

  /// While units are scored by the whole model before the run; no items: they are not, or were.
  PlannedResource scoring_ram = {}, scoring_device = {};
  std::string scoring_refusal = {};  // why it does not fit; empty: it does

  const ResourceOptions& resources() const { return recipes.front().resources; }
};

/// Blocks that travel together, so that the windows of every recipe begin and end with them.
int blocks_per_span(const std::vector<Recipe>& recipes);

bool fits(const RunPlan& plan);

/// Not even the smallest settings fit, or the scoring of units does not: what they would take, item
/// by item, and what would fit. Memory is what the larger of the two takes.
class PlanRefused : public BudgetError {
 public:
  PlanRefused(const std::string& what, RunPlan smallest)
      : BudgetError(what), smallest_(std::move(smallest)) {}
  const RunPlan& smallest() const { return smallest_; }

 private:
  RunPlan smallest_;
};

/// The fastest settings that fit. Pure function. Throws PlanRefused.
RunPlan plan_run(const PlanInputs& inputs);

}  // namespace coppice
