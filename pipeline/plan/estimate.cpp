// What settings take: memory and disk item by item, work and traffic, time by rates.
#include "pipeline/plan/estimate.h"

#include <fmt/format.h>

#include <algorithm>

#include "pipeline/plan/stage_time.h"
#include "stages/stage_table.h"

namespace coppice {
namespace {

// Resident beside what is counted: stacks of threads, HDF5, oneTBB, autograd, the allocator's own.
// Measured on blocks of 3.5 M to 880 M parameters (scripts/bench_stream.sh shows what is left).
constexpr uint64_t kGrowthBytes = uint64_t{48} << 20;
// Freed pages that the allocator keeps: a share of what stages hold.
constexpr double kAllocatorShare = 0.06;

// Beside the heap: stacks, pieces of files being written.
constexpr uint64_t kOtherMappedBytes = uint64_t{16} << 20;

std::vector<HalfRange> windows_of_block(const PlanInputs& in) {
  return windows_of({0, 2}, in.recipe.reconstruct.window);
}

bool has_cached_targets(const PlanInputs& in, const RunSettings& settings) {
  return has_half_block_boundaries(in) && !settings.recompute_targets;
}

SpanShape shape_of(const PlanInputs& in, HalfRange halves) {
  return {in.architecture, halves, in.windows, in.seqlen, in.compute_bytes};
}

/// Hidden states that the reconstruction of all windows of a block reads, undone.
double adapt_reads(const PlanInputs& in) {
  double bytes = 0;
  for (const HalfRange& window : windows_of_block(in)) {
    for (const auto& stage : adapt_stages(in.recipe.prune, in.recipe.reconstruct)) {
      bytes += stage->cost(shape_of(in, window)).bytes_moved;
    }
  }
  return bytes;
}

/// Of a block whose targets are made again for every read: the dense attention half, forward. Half
/// of what the reconstruction reads is such targets: the targets of the attention half, and the
/// inputs of the MLP half.
Cost recompute_cost(const PlanInputs& in) {
  const double reads = adapt_reads(in) / 2 / double(window_bytes(in));  // windows
  Cost cost = Calibrate({}).cost(shape_of(in, {0, 1}));
  const double passes = reads / double(std::max<int64_t>(1, in.windows));
  cost.product_flop *= passes;
  cost.attention_flop *= passes;
  cost.bytes_touched *= passes;
  cost.bytes_moved = 0;  // its inputs are counted as what would have been read
  return cost;
}

// ---- memory -------------------------------------------------------------------------------------

double held_by_stages(const PlanInputs& in, const RunSettings& settings) {
  const Cost forward = forward_stage(in.recipe.prune, in.recipe.reconstruct, settings.convert)
                           ->cost(shape_of(in, {0, 2}));
  double held = forward.bytes_held;
  // The dense attention half that targets are made with lies beside what is reconstructed.
  const double recomputing = settings.recompute_targets ? recompute_cost(in).bytes_held : 0;
  for (const HalfRange& window : windows_of_block(in)) {
    for (const auto& stage : adapt_stages(in.recipe.prune, in.recipe.reconstruct)) {
      held = std::max(held, stage->cost(shape_of(in, window)).bytes_held + recomputing);
    }
  }
  return held + forward.bytes_kept;
}

// Copies of windows on their way through the cache.
uint64_t in_flight_bytes(const PlanInputs& in, const RunSettings& settings) {
  const uint64_t window = window_bytes(in);
  // Undone and encoded while it waits; each codec thread has room for one split into planes.
  const uint64_t behind = 2 * window * uint64_t(settings.windows_behind + 1);
  const uint64_t scratch = window * uint64_t(in.codec_threads);
  // A window under reconstruction has two sources, each keeps a window as it lies and decoded.
  const uint64_t ahead = 2 * 2 * window * uint64_t(settings.windows_ahead);
  return behind + ahead + scratch;
}

uint64_t kept_bytes(const PlanInputs& in, const RunSettings& settings) {
  // Inputs of this block, and of the next one as they are made. Undone: how well they will
  // compress is not known before the start.
  return window_bytes(in) * uint64_t(settings.targets_in_ram + 2 * settings.inputs_in_ram);
}

uint64_t staging_bytes(const PlanInputs& in) {
  return uint64_t(in.recipe.resources.num_slabs) * in.recipe.resources.slab_bytes;
}

uint64_t mapped_bytes(const PlanInputs& in, const RunSettings& settings) {
  // Of hidden states: what is read, before it is decoded.
  const uint64_t stored = 2 * window_bytes(in) * uint64_t(settings.windows_ahead);
  return (in.is_host ? uint64_t(settings.slots) * in.slot_bytes : staging_bytes(in)) +
         uint64_t(settings.outputs) * in.image_bytes + stored + kOtherMappedBytes;
}

std::vector<PlanItem> ram_items(const PlanInputs& in, const RunSettings& settings) {
  std::vector<PlanItem> items = {{"program, libraries, threads", in.process_bytes + kGrowthBytes}};
  if (in.is_host) {
    items.push_back({fmt::format("blocks read ahead ({} slots)", settings.slots),
                     uint64_t(settings.slots) * in.slot_bytes});
    const double held = held_by_stages(in, settings);
    items.push_back({"work of the largest stage", uint64_t(held * (1 + kAllocatorShare))});
  } else {
    items.push_back({"staging buffers", staging_bytes(in)});
  }
  items.push_back({fmt::format("shards to be written ({})", settings.outputs),
                   uint64_t(settings.outputs) * in.image_bytes});
  items.push_back({"hidden states on their way", in_flight_bytes(in, settings)});
  if (const uint64_t kept = kept_bytes(in, settings)) {
    items.push_back({"hidden states kept in memory", kept});
  }
  return items;
}

std::vector<PlanItem> device_items(const PlanInputs& in, const RunSettings& settings) {
  if (in.is_host) return {};
  return {
      {fmt::format("blocks read ahead ({} slots)", settings.slots),
       uint64_t(settings.slots) * in.slot_bytes},
      {"work of the largest stage", uint64_t(held_by_stages(in, settings) * (1 + kAllocatorShare))},
      {"adapted tensors", in.image_bytes}};
}

// ---- disk ---------------------------------------------------------------------------------------

std::vector<PlanItem> scratch_items(const PlanInputs& in, const RunSettings& settings) {
  const uint64_t window = window_bytes(in);
  // The inputs of the blocks being stored and of the one at work, and what the latter makes.
  const int boundaries = 2 + settings.outputs;
  std::vector<PlanItem> items = {{fmt::format("hidden states between blocks ({})", boundaries),
                                  uint64_t(boundaries) * window * uint64_t(in.windows)}};
  if (has_cached_targets(in, settings)) {
    items.push_back(
        {"hidden states inside a block", window * uint64_t(in.windows - settings.targets_in_ram)});
  }
  items.push_back({"journal, tokens, indices", uint64_t(16) << 20});
  return items;
}

// ---- time ---------------------------------------------------------------------------------------

double divided(double amount, double rate) { return rate > 0 ? amount / rate : 0; }

/// The work of one block on all of them.
PlannedStage over_blocks(const PlanInputs& in, std::string name, const StageWork& of_a_block,
                         const std::string& rehearsed_as) {
  const StageWork work = double(in.blocks_to_do) * of_a_block;
  PlannedStage stage{std::move(name), work.cost, 0, ""};
  if (!in.rates.known()) return stage;
  double largest = 0;
  for (const TimeShare& share : time_shares(work, in.rates)) {
    stage.seconds += share.seconds * in.rates.correction(rehearsed_as);
    if (share.seconds > largest) {
      largest = share.seconds;
      stage.bound = share.name;
    }
  }
  return stage;
}

PlannedStage over_blocks(const PlanInputs& in, const Stage& stage,
                         const std::vector<HalfRange>& windows) {
  const std::string name(stage.name());
  return over_blocks(in, name, work_of(stage, windows, shape_of(in, {0, 2})), name);
}

/// Hidden states decoded and encoded: `moved` of all stages, less what is not made.
struct Traffic {
  double written = 0, read = 0;  // bytes, undone
};

Traffic traffic_of(const PlanInputs& in, const RunSettings& settings) {
  const double boundary = double(window_bytes(in)) * double(in.windows);
  const double blocks = in.blocks_to_do;
  Traffic traffic;
  traffic.written = boundary * (blocks * (has_cached_targets(in, settings) ? 2 : 1) + 1);
  traffic.read = blocks * (boundary + adapt_reads(in));  // the dense forward, then all others
  return traffic;
}

/// Of `traffic`, what passes the disk: less what is kept in memory.
Traffic disk_traffic(const PlanInputs& in, const RunSettings& settings) {
  Traffic traffic = traffic_of(in, settings);
  const double windows = std::max<double>(1, double(in.windows));
  const double targets = double(settings.targets_in_ram) / windows;
  const double inputs = double(settings.inputs_in_ram) / windows;
  if (has_cached_targets(in, settings)) {
    traffic.written -= 0.5 * targets * traffic.written;  // every other boundary
    // Inputs, middle and output of a block are read about equally often.
    traffic.read *= 1 - 0.5 * targets - 0.5 * inputs;
  } else {
    traffic.read *= 1 - inputs;
  }
  return traffic;
}

void add_times(const PlanInputs& in, RunPlan& plan) {
  const auto forward = forward_stage(in.recipe.prune, in.recipe.reconstruct, plan.settings.convert);
  plan.stages.push_back(over_blocks(in, *forward, {{0, 1}, {1, 2}}));
  for (const auto& stage : adapt_stages(in.recipe.prune, in.recipe.reconstruct)) {
    plan.stages.push_back(over_blocks(in, *stage, windows_of_block(in)));
  }
  if (plan.settings.recompute_targets) {
    const Cost cost = recompute_cost(in);
    plan.stages.push_back(
        over_blocks(in, "recompute targets", {cost, cost.product_flop}, "calibrate"));
  }
  const Traffic all = traffic_of(in, plan.settings);
  const Traffic disk = disk_traffic(in, plan.settings);
  const double stored = 1 / std::max(1.0, in.rates.codec_ratio);
  plan.bytes_read = in.block_read_bytes + in.outer_bytes + uint64_t(disk.read * stored);
  plan.bytes_written = in.output_bytes + uint64_t(disk.written * stored);
  if (!in.rates.known()) return;
  if (in.is_host) {  // the codec takes its share of the cores that compute
    const double seconds =
        (divided(all.written, in.rates.encoded_bytes) + divided(all.read, in.rates.decoded_bytes)) /
        std::max(1, in.codec_threads);
    plan.stages.push_back({"codec", {}, seconds, "cores"});
    const uint64_t beside = std::min(plan.ram.bytes(), in.process_bytes);
    plan.stages.push_back({"first touch of memory",
                           {},
                           divided(double(plan.ram.bytes() - beside), in.rates.new_memory_bytes),
                           "memory"});
  }
  for (const PlannedStage& stage : plan.stages) plan.compute_seconds += stage.seconds;
  // The rest of the model is copied before the stream starts.
  const double copied = divided(double(in.outer_bytes), in.rates.read_bytes) +
                        divided(double(in.outer_bytes), in.rates.written_bytes);
  plan.disk_seconds =
      divided(double(plan.bytes_read - in.outer_bytes), in.rates.read_bytes) +
      divided(double(plan.bytes_written - std::min(plan.bytes_written, in.outer_bytes)),
              in.rates.written_bytes);
  plan.stages.push_back({"disk (beside it)", {}, plan.disk_seconds, "disk"});
  // The first block's read and the last one's write have nothing to hide behind.
  const double blocks = std::max(1, in.blocks_to_do);
  const double ends = divided(double(in.block_read_bytes) / blocks, in.rates.read_bytes) +
                      divided(double(in.image_bytes), in.rates.written_bytes);
  plan.seconds = std::max(plan.compute_seconds, plan.disk_seconds) + ends + copied;
}

}  // namespace

uint64_t window_bytes(const PlanInputs& in) {
  const uint64_t element = in.architecture.dtype == "F32" ? 4 : 2;
  return uint64_t(in.seqlen) * uint64_t(in.architecture.hidden) * element;
}

bool has_half_block_boundaries(const PlanInputs& in) {
  return in.recipe.reconstruct.window == WindowKind::kHalfBlock;
}

uint64_t PlannedResource::bytes() const {
  uint64_t sum = 0;
  for (const PlanItem& item : items) sum += item.bytes;
  return sum;
}

RunPlan estimate(const PlanInputs& in, const RunSettings& settings) {
  RunPlan plan;
  plan.settings = settings;
  plan.ram = {"RAM", ram_items(in, settings), in.ram_limit, in.ram_limit_name};
  plan.device = {"device memory", device_items(in, settings), in.device_limit,
                 in.device_limit_name};
  plan.scratch = {"disk for hidden states", scratch_items(in, settings), in.scratch_limit,
                  in.scratch_limit_name};
  plan.output = {
      "disk for the output", {{"shards", in.output_bytes}}, in.output_limit, in.output_limit_name};
  plan.mapped_bytes = mapped_bytes(in, settings);
  add_times(in, plan);
  return plan;
}

}  // namespace coppice
