#include "pipeline/plan/planned_memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "pipeline/plan/planned_work.h"
#include "stages/reconstruct.h"  // num_held_out

namespace coppice {
namespace {

// Resident beside what is counted: stacks of threads, HDF5, oneTBB, autograd, the allocator's own.
// Measured on blocks of 3.5 M to 880 M parameters (scripts/bench_stream.sh shows what is left).
constexpr uint64_t kGrowthBytes = uint64_t{48} << 20;
// Freed pages that the allocator keeps: a share of what stages hold.
constexpr double kAllocatorShare = 0.06;

// Beside the heap: stacks, pieces of files being written.
constexpr uint64_t kOtherMappedBytes = uint64_t{16} << 20;

/// Of a chunk of the head: its rows as they are computed with, logits of a window and as many more.
double held_by_head(const PlanInputs& in) {
  const int64_t row = in.architecture.width_of_embedding() * in.compute_bytes;
  return double(in.head_rows) * double(row + 2 * in.seqlen * int64_t{sizeof(float)});
}

/// Statistics of a span, from its forward to its adaptation.
double kept_by_forward(const PlanInputs& in, const RunSettings& settings) {
  const std::unique_ptr<Stage> dense = forward_stage(in, settings.convert);
  return dense ? dense->cost(shape_of(in, span_of(in))).bytes_kept : 0;
}

/// Of a device, with the statistics of the span at work.
double held_by_stages(const PlanInputs& in, const RunSettings& settings) {
  const std::unique_ptr<Stage> dense = forward_stage(in, settings.convert);
  const Cost forward = dense ? dense->cost(shape_of(in, span_of(in))) : Cost{};
  double held = forward.bytes_held, kept = forward.bytes_kept;
  // The dense attention half that targets are made with lies beside what is reconstructed.
  const double recomputing = settings.recompute_targets ? recompute_cost(in).bytes_held : 0;
  for (const Recipe& recipe : in.recipes) {
    for (const HalfRange& window : windows_of_span(in, recipe)) {
      for (const auto& stage : adapt_stages(in, recipe)) {
        const Cost cost = stage->cost(shape_of(in, window, settings.kept_activations));
        held = std::max(held, cost.bytes_held + recomputing);
        kept = std::max(kept, cost.bytes_kept);  // statistics of the window at work
      }
    }
  }
  return std::max(held + kept, held_by_head(in));
}

// Copies of windows on their way through the cache.
uint64_t in_flight_bytes(const PlanInputs& in, const RunSettings& settings) {
  const uint64_t window = window_bytes(in);
  // Undone and encoded while it waits; each codec thread has room for one split into planes.
  const uint64_t behind = 2 * window * uint64_t(settings.windows_behind + 1);
  const uint64_t scratch = window * uint64_t(in.codec_threads);
  // A window under reconstruction has two sources, each keeps a window as it lies and decoded.
  const uint64_t ahead = uint64_t(in.devices) * 2 * 2 * window * uint64_t(settings.windows_ahead);
  return behind + ahead + scratch;
}

int all_streams_inside(const PlanInputs& in, const RunSettings& settings) {
  return spans_begun(in, settings) * streams_inside(in, settings.recompute_targets);
}

uint64_t kept_bytes(const PlanInputs& in, const RunSettings& settings) {
  // Inputs of this block, and of the next one as they are made. Undone: how well they will
  // compress is not known before the start.
  return window_bytes(in) * uint64_t(all_streams_inside(in, settings) * settings.targets_in_ram +
                                     boundaries_between(in, settings) * settings.inputs_in_ram);
}

uint64_t staging_bytes(const PlanInputs& in) {
  return uint64_t(in.resources().num_slabs) * in.resources().slab_bytes;
}

uint64_t held_out_window_bytes(const PlanInputs& in) {
  const double share = in.recipes.front().reconstruct.validation_fraction;
  return uint64_t(num_held_out(share, int(in.windows))) * window_bytes(in);
}

/// In the compute dtype, of every recipe's model and of the dense one; beside them in fp32, as they
/// are saved.
uint64_t held_out_bytes(const PlanInputs& in) {
  return 2 * held_out_window_bytes(in) * (2 * in.recipes.size() + 1);
}

uint64_t mapped_bytes(const PlanInputs& in, const RunSettings& settings) {
  // Of hidden states: what is read, before it is decoded.
  const uint64_t stored =
      uint64_t(in.devices) * 2 * window_bytes(in) * uint64_t(settings.windows_ahead);
  return (in.is_host ? uint64_t(all_slots(in, settings)) * in.slot_bytes : staging_bytes(in)) +
         uint64_t(settings.outputs) * adapted_bytes(in) + stored + kOtherMappedBytes;
}

/// A block's FP8 weights are widened when it is worked on, and stay so until it leaves its slot.
void add_widened(const PlanInputs& in, int slots, std::vector<PlanItem>& items) {
  if (in.widened_bytes == 0) return;
  items.push_back({"FP8 weights as bf16", uint64_t(slots) * in.widened_bytes});
}

/// Of spans whose forward is done while each device is at work on another.
void add_waiting_statistics(const PlanInputs& in, const RunSettings& settings, int spans_waiting,
                            std::vector<PlanItem>& items) {
  const auto kept = uint64_t(kept_by_forward(in, settings) * (1 + kAllocatorShare));
  if (spans_waiting == 0 || kept == 0) return;
  items.push_back({"statistics that wait with their spans", uint64_t(spans_waiting) * kept});
}

/// On the host, whose generator gives every device the same scores.
void add_random_scores(const PlanInputs& in, std::vector<PlanItem>& items) {
  const bool any = std::any_of(in.recipes.begin(), in.recipes.end(), [](const Recipe& recipe) {
    return recipe.prune.method == PruneMethod::kRandom;
  });
  if (!any) return;
  int64_t largest = 0;
  for (const LinearSpec& linear : in.architecture.linears) {
    largest = std::max(largest, linear.out * linear.in);
  }
  items.push_back({"random scores on their way to the device",
                   uint64_t(in.devices) * uint64_t(largest) * sizeof(float)});
}

std::vector<PlanItem> ram_items(const PlanInputs& in, const RunSettings& settings) {
  std::vector<PlanItem> items = {{"program, libraries, threads", in.process_bytes + kGrowthBytes}};
  if (in.is_host) {
    const int slots = all_slots(in, settings);
    items.push_back(
        {fmt::format("blocks read ahead ({} slots)", slots), uint64_t(slots) * in.slot_bytes});
    add_widened(in, slots, items);
    if (in.unaligned_bytes > 0) {
      items.push_back(
          {"weights that lie unaligned", uint64_t(spans_begun(in, settings)) * in.unaligned_bytes});
    }
    const double held = in.devices * held_by_stages(in, settings);
    items.push_back({in.devices > 1 ? fmt::format("work of the largest stage, {} times", in.devices)
                                    : "work of the largest stage",
                     uint64_t(held * (1 + kAllocatorShare))});
    add_waiting_statistics(in, settings, spans_begun(in, settings) - in.devices, items);
  } else {
    items.push_back({"staging buffers", staging_bytes(in)});
    add_random_scores(in, items);
  }
  items.push_back({fmt::format("shards to be written ({})", settings.outputs),
                   uint64_t(settings.outputs) * adapted_bytes(in)});
  if (std::any_of(in.recipes.begin(), in.recipes.end(),
                  [](const Recipe& recipe) { return recipe.prune.is_sliced; })) {
    items.push_back({"adapted tensors before they are cut", in.image_bytes});
  }
  if (in.mask_bytes > 0) {  // being made, and of every shard on its way
    items.push_back({"bitmasks", uint64_t(2 + settings.outputs) * in.mask_bytes});
  }
  if (in.is_judged) items.push_back({"held-out windows of every recipe", held_out_bytes(in)});
  items.push_back({"hidden states on their way", in_flight_bytes(in, settings)});
  if (const uint64_t kept = kept_bytes(in, settings)) {
    items.push_back({"hidden states kept in memory", kept});
  }
  if (in.report_bytes > 0) items.push_back({"reports", in.report_bytes});
  return items;
}

std::vector<PlanItem> device_items(const PlanInputs& in, const RunSettings& settings) {
  if (in.is_host) return {};
  std::vector<PlanItem> items;
  items.push_back({fmt::format("blocks read ahead ({} slots)", settings.slots),
                   uint64_t(settings.slots) * in.slot_bytes});
  items.push_back({"work of the largest stage",
                   uint64_t(held_by_stages(in, settings) * (1 + kAllocatorShare))});
  add_waiting_statistics(in, settings, spans_begun(in, settings) / in.devices - 1, items);
  const int of_each = (settings.outputs + in.devices - 1) / in.devices;
  items.push_back({fmt::format("adapted tensors ({})", of_each),
                   uint64_t(of_each) * (in.image_bytes + in.mask_bytes)});
  add_widened(in, settings.slots, items);
  if (in.is_judged) items.push_back({"held-out windows of every recipe", held_out_bytes(in)});
  return items;
}

/// Units are scored before anything streams; what is larger of the two is the peak.
void add_scoring(uint64_t scoring_bytes, PlannedResource& resource) {
  if (scoring_bytes <= resource.bytes()) return;
  resource.items.push_back({"the whole model before, for scores of units: more than the above",
                            scoring_bytes - resource.bytes()});
}

std::vector<PlanItem> scratch_items(const PlanInputs& in, const RunSettings& settings) {
  const uint64_t window = window_bytes(in);
  // The inputs of the blocks being stored and of the one at work, and what the latter makes.
  const int boundaries =
      num_streams(in) * (2 + settings.outputs) + blocks_inside(in) + boundaries_ahead(in, settings);
  std::vector<PlanItem> items = {{fmt::format("hidden states between blocks ({})", boundaries),
                                  uint64_t(boundaries) * window * uint64_t(in.windows)}};
  if (const int inside = all_streams_inside(in, settings)) {
    items.push_back({"hidden states inside a block",
                     uint64_t(inside) * window * uint64_t(in.windows - settings.targets_in_ram)});
  }
  if (in.is_judged) {  // of the span being stored, and of the one at work; in fp32
    items.push_back(
        {"held-out windows of every recipe", 4 * in.recipes.size() * held_out_window_bytes(in)});
  }
  items.push_back({"journal, tokens, indices", (uint64_t(16) << 20) + in.journal_bytes});
  return items;
}

}  // namespace

void add_memory(const PlanInputs& in, RunPlan& plan) {
  plan.ram = {"RAM", ram_items(in, plan.settings), in.ram_limit, in.ram_limit_name};
  plan.device = {"device memory", device_items(in, plan.settings), in.device_limit,
                 in.device_limit_name};
  add_scoring(in.scoring_ram.bytes(), plan.ram);
  if (!in.is_host) add_scoring(in.scoring_device.bytes(), plan.device);
  plan.scratch = {"disk for hidden states", scratch_items(in, plan.settings), in.scratch_limit,
                  in.scratch_limit_name};
  plan.output = {
      "disk for the output", {{"shards", in.output_bytes}}, in.output_limit, in.output_limit_name};
  plan.mapped_bytes = mapped_bytes(in, plan.settings);
}

}  // namespace coppice
