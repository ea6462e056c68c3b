// What settings take: memory and disk item by item, work and traffic, time by rates.
#include "pipeline/plan/estimate.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "pipeline/plan/stage_time.h"
#include "pipeline/survey.h"
#include "stages/held_out.h"
#include "stages/propagation.h"
#include "stages/reconstruct.h"
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

HalfRange span_of(const PlanInputs& in) { return {0, 2 * blocks_per_span(in.recipes)}; }

/// Spans left to do; the last one may be a part of one.
double spans_to_do(const PlanInputs& in) {
  return double(in.blocks_to_do) / blocks_per_span(in.recipes);
}

std::vector<HalfRange> windows_of_span(const PlanInputs& in, const Recipe& recipe) {
  return windows_of(span_of(in), recipe.reconstruct.window);
}

std::vector<std::unique_ptr<Stage>> adapt_stages(const PlanInputs& in, const Recipe& recipe) {
  std::vector<std::unique_ptr<Stage>> stages = adapt_stages(recipe.prune, recipe.reconstruct);
  if (in.is_judged) {
    stages.push_back(std::make_unique<HeldOutForward>(recipe.reconstruct.validation_fraction));
  }
  return stages;
}

/// Null where no dense forward is wanted.
std::unique_ptr<Stage> forward_stage(const PlanInputs& in, const RunSettings& settings) {
  std::vector<VariantOptions> options;
  options.reserve(in.recipes.size());
  for (const Recipe& recipe : in.recipes) options.push_back({recipe.prune, recipe.reconstruct});
  return forward_stage(options, settings.convert);
}

bool has_half_block_boundaries(const ReconstructOptions& options) {
  return has_windows_inside_blocks(options.window) && options.propagation != Propagation::kSparse;
}

SpanShape shape_of(const PlanInputs& in, HalfRange halves) {
  return {in.architecture, halves, in.windows, in.seqlen, in.compute_bytes};
}

/// Hidden states that the reconstruction of all windows of a span reads, undone.
double adapt_reads(const PlanInputs& in) {
  double bytes = 0;
  for (const Recipe& recipe : in.recipes) {
    for (const HalfRange& window : windows_of_span(in, recipe)) {
      for (const auto& stage : adapt_stages(in, recipe)) {
        bytes += stage->cost(shape_of(in, window)).bytes_moved;
      }
    }
  }
  return bytes;
}

/// Of what the reconstruction of a block reads, what the dense attention half makes: the targets of
/// the attention half and, unless the pruned prefix makes them, the inputs of the MLP half. A
/// matrix of the MLP half reads them for its inputs, or for its targets.
double recomputed_reads(const PlanInputs& in, const Recipe& recipe) {
  const ReconstructOptions& options = recipe.reconstruct;
  if (!has_half_block_boundaries(options)) return 0;
  const auto share = [&](HalfRange window) {
    const bool is_mlp = half_of(window.first) == Half::kMlp;
    if (options.window.kind != WindowKind::kMatrix) {
      return is_mlp && propagates(options) ? 0.0 : 0.5;
    }
    return !is_mlp ? 0.0 : propagates(options) ? 0.5 : 1.0;
  };
  double bytes = 0;
  for (const HalfRange& window : windows_of_span(in, recipe)) {
    bytes += share(window) * Reconstruct(options).cost(shape_of(in, window)).bytes_moved;
  }
  return bytes;
}

/// Of a block (a span of one) whose targets are made again for every read: the dense attention
/// half, forward.
Cost recompute_cost(const PlanInputs& in) {
  double reads = 0;  // windows
  for (const Recipe& recipe : in.recipes) {
    reads += recomputed_reads(in, recipe) / double(window_bytes(in));
  }
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
  const std::unique_ptr<Stage> dense = forward_stage(in, settings);
  const Cost forward = dense ? dense->cost(shape_of(in, span_of(in))) : Cost{};
  double held = forward.bytes_held, kept = forward.bytes_kept;
  // The dense attention half that targets are made with lies beside what is reconstructed.
  const double recomputing = settings.recompute_targets ? recompute_cost(in).bytes_held : 0;
  for (const Recipe& recipe : in.recipes) {
    for (const HalfRange& window : windows_of_span(in, recipe)) {
      for (const auto& stage : adapt_stages(in, recipe)) {
        const Cost cost = stage->cost(shape_of(in, window));
        held = std::max(held, cost.bytes_held + recomputing);
        kept = std::max(kept, cost.bytes_kept);  // statistics of the window at work
      }
    }
  }
  return held + kept;
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
  return window_bytes(in) *
         uint64_t(streams_inside(in, settings.recompute_targets) * settings.targets_in_ram +
                  boundaries_between(in) * settings.inputs_in_ram);
}

uint64_t staging_bytes(const PlanInputs& in) {
  return uint64_t(in.resources().num_slabs) * in.resources().slab_bytes;
}

/// What the adaptation of a span writes to: a part for each recipe that is written, one for all
/// others.
uint64_t adapted_bytes(const PlanInputs& in) {
  return in.image_bytes * uint64_t(std::max(1, in.num_written));
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
  const uint64_t stored = 2 * window_bytes(in) * uint64_t(settings.windows_ahead);
  return (in.is_host ? uint64_t(settings.slots) * in.slot_bytes : staging_bytes(in)) +
         uint64_t(settings.outputs) * adapted_bytes(in) + stored + kOtherMappedBytes;
}

/// A block's FP8 weights are widened when it is worked on, and stay so until it leaves its slot.
void add_widened(const PlanInputs& in, const RunSettings& settings, std::vector<PlanItem>& items) {
  if (in.widened_bytes == 0) return;
  items.push_back({"FP8 weights as bf16", uint64_t(settings.slots) * in.widened_bytes});
}

std::vector<PlanItem> ram_items(const PlanInputs& in, const RunSettings& settings) {
  std::vector<PlanItem> items = {{"program, libraries, threads", in.process_bytes + kGrowthBytes}};
  if (in.is_host) {
    items.push_back({fmt::format("blocks read ahead ({} slots)", settings.slots),
                     uint64_t(settings.slots) * in.slot_bytes});
    add_widened(in, settings, items);
    const double held = held_by_stages(in, settings);
    items.push_back({"work of the largest stage", uint64_t(held * (1 + kAllocatorShare))});
  } else {
    items.push_back({"staging buffers", staging_bytes(in)});
  }
  items.push_back({fmt::format("shards to be written ({})", settings.outputs),
                   uint64_t(settings.outputs) * adapted_bytes(in)});
  if (in.mask_bytes > 0) {  // being made, and of every shard on its way
    items.push_back({"bitmasks", uint64_t(2 + settings.outputs) * in.mask_bytes});
  }
  if (in.is_judged) items.push_back({"held-out windows of every recipe", held_out_bytes(in)});
  items.push_back({"hidden states on their way", in_flight_bytes(in, settings)});
  if (const uint64_t kept = kept_bytes(in, settings)) {
    items.push_back({"hidden states kept in memory", kept});
  }
  return items;
}

std::vector<PlanItem> device_items(const PlanInputs& in, const RunSettings& settings) {
  if (in.is_host) return {};
  std::vector<PlanItem> items = {
      {fmt::format("blocks read ahead ({} slots)", settings.slots),
       uint64_t(settings.slots) * in.slot_bytes},
      {"work of the largest stage", uint64_t(held_by_stages(in, settings) * (1 + kAllocatorShare))},
      {"adapted tensors", in.image_bytes + in.mask_bytes}};
  add_widened(in, settings, items);
  if (in.is_judged) items.push_back({"held-out windows of every recipe", held_out_bytes(in)});
  return items;
}

// ---- disk ---------------------------------------------------------------------------------------

std::vector<PlanItem> scratch_items(const PlanInputs& in, const RunSettings& settings) {
  const uint64_t window = window_bytes(in);
  // The inputs of the blocks being stored and of the one at work, and what the latter makes.
  const int boundaries = num_streams(in) * (2 + settings.outputs) + blocks_inside(in);
  std::vector<PlanItem> items = {{fmt::format("hidden states between blocks ({})", boundaries),
                                  uint64_t(boundaries) * window * uint64_t(in.windows)}};
  if (const int inside = streams_inside(in, settings.recompute_targets)) {
    items.push_back({"hidden states inside a block",
                     uint64_t(inside) * window * uint64_t(in.windows - settings.targets_in_ram)});
  }
  if (in.is_judged) {  // of the span being stored, and of the one at work; in fp32
    items.push_back(
        {"held-out windows of every recipe", 4 * in.recipes.size() * held_out_window_bytes(in)});
  }
  items.push_back({"journal, tokens, indices", uint64_t(16) << 20});
  return items;
}

// ---- time ---------------------------------------------------------------------------------------

double divided(double amount, double rate) { return rate > 0 ? amount / rate : 0; }

/// The work of one span on all of them.
PlannedStage over_spans(const PlanInputs& in, std::string name, const StageWork& of_a_span,
                        const std::string& rehearsed_as) {
  const StageWork work = spans_to_do(in) * of_a_span;
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

PlannedStage over_spans(const PlanInputs& in, const Stage& stage,
                        const std::vector<HalfRange>& windows) {
  const std::string name(stage.name());
  return over_spans(in, name, work_of(stage, windows, shape_of(in, span_of(in))), name);
}

/// Hidden states decoded and encoded: `moved` of all stages, less what is not made.
struct Traffic {
  double written = 0, read = 0;  // bytes, undone
};

Traffic traffic_of(const PlanInputs& in, const RunSettings& settings) {
  const double boundary = double(window_bytes(in)) * double(in.windows);
  const double spans = spans_to_do(in);
  const bool has_dense = forward_stage(in, settings) != nullptr;
  Traffic traffic;
  traffic.written = boundary * (spans * (num_streams(in) + blocks_inside(in) +
                                         streams_inside(in, settings.recompute_targets)) +
                                1);
  traffic.read = spans * ((has_dense ? boundary : 0) + adapt_reads(in));  // forward, all others
  return traffic;
}

/// Of `traffic`, what passes the disk: less what is kept in memory.
Traffic disk_traffic(const PlanInputs& in, const RunSettings& settings) {
  Traffic traffic = traffic_of(in, settings);
  const double windows = std::max<double>(1, double(in.windows));
  const double targets = double(settings.targets_in_ram) / windows;
  const double inputs = double(settings.inputs_in_ram) / windows;
  if (streams_inside(in, settings.recompute_targets) > 0) {
    traffic.written -= 0.5 * targets * traffic.written;  // every other boundary
    // Inputs, middle and output of a block are read about equally often.
    traffic.read *= 1 - 0.5 * targets - 0.5 * inputs;
  } else {
    traffic.read *= 1 - inputs;
  }
  return traffic;
}

/// To the stage of that name, which another recipe may have named before.
void add_to(std::vector<PlannedStage>& stages, PlannedStage more) {
  const auto same = std::find_if(stages.begin(), stages.end(), [&](const PlannedStage& stage) {
    return stage.name == more.name;
  });
  if (same == stages.end()) return stages.push_back(std::move(more));
  same->cost += more.cost;
  same->seconds += more.seconds;
}

/// Before the run: the dense forward once more, and on a few blocks every rate that is tried.
void add_survey(const PlanInputs& in, std::vector<PlannedStage>& stages) {
  if (std::none_of(in.recipes.begin(), in.recipes.end(), is_open)) return;
  PlannedStage survey = over_spans(in, Calibrate({.statistics = Calibrate::Statistics::kSquares}),
                                   windows_of(span_of(in), {WindowKind::kNone}));
  const double blocks = double(trial_blocks(int(in.architecture.num_blocks)).size());
  const double share = std::min(1.0, blocks / std::max(1.0, spans_to_do(in)));
  for (const Recipe& recipe : in.recipes) {
    if (recipe.reconstruct.lr > 0) continue;
    for (const auto& stage : adapt_stages(recipe.prune, recipe.reconstruct)) {
      const PlannedStage run = over_spans(in, *stage, windows_of_span(in, recipe));
      survey.seconds += share * double(tried_rates().size()) * run.seconds;
    }
  }
  survey.name = "survey";
  stages.push_back(std::move(survey));
}

void add_times(const PlanInputs& in, RunPlan& plan) {
  if (const auto forward = forward_stage(in, plan.settings)) {
    plan.stages.push_back(over_spans(in, *forward, windows_of(span_of(in), {WindowKind::kNone})));
  }
  for (const Recipe& recipe : in.recipes) {
    for (const auto& stage : adapt_stages(in, recipe)) {
      add_to(plan.stages, over_spans(in, *stage, windows_of_span(in, recipe)));
    }
  }
  add_survey(in, plan.stages);
  if (plan.settings.recompute_targets) {
    const Cost cost = recompute_cost(in);
    plan.stages.push_back(
        over_spans(in, "recompute targets", {cost, cost.product_flop}, "calibrate"));
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
  const double spans = std::max(1.0, spans_to_do(in));
  const double ends = divided(double(in.block_read_bytes) / spans, in.rates.read_bytes) +
                      divided(double(adapted_bytes(in)), in.rates.written_bytes);
  plan.seconds = std::max(plan.compute_seconds, plan.disk_seconds) + ends + copied;
}

}  // namespace

uint64_t window_bytes(const PlanInputs& in) {
  const uint64_t element = in.architecture.dtype == "F32" ? 4 : 2;
  return uint64_t(in.seqlen) * uint64_t(in.architecture.hidden) * element;
}

bool has_half_block_boundaries(const PlanInputs& in) {
  return std::any_of(in.recipes.begin(), in.recipes.end(), [](const Recipe& recipe) {
    return has_half_block_boundaries(recipe.reconstruct);
  });
}

int num_streams(const PlanInputs& in) {
  const bool has_dense = forward_stage(in, {}) != nullptr;
  return int(has_dense) + int(propagates(in.recipes.front().reconstruct));
}

// Only one recipe propagates at a time.
int streams_inside(const PlanInputs& in, bool recompute_targets) {
  const ReconstructOptions& options = in.recipes.front().reconstruct;
  const bool has_propagated = propagates(options) && options.window.kind != WindowKind::kBlock;
  return blocks_per_span(in.recipes) *
         (int(has_half_block_boundaries(in) && !recompute_targets) + int(has_propagated));
}

int blocks_inside(const PlanInputs& in) {
  int count = 0;
  for (int block = 1; block < blocks_per_span(in.recipes); ++block) {
    count += std::any_of(in.recipes.begin(), in.recipes.end(), [&](const Recipe& recipe) {
      const Window& window = recipe.reconstruct.window;
      return has_windows_inside_blocks(window) ||
             (window.kind == WindowKind::kBlock && block % window.blocks == 0);
    });
  }
  return count;
}

int boundaries_between(const PlanInputs& in) { return 2 * num_streams(in) + blocks_inside(in); }

int blocks_per_span(const std::vector<Recipe>& recipes) {
  int blocks = 1;
  for (const Recipe& recipe : recipes) blocks = std::lcm(blocks, recipe.reconstruct.window.blocks);
  return blocks;
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
