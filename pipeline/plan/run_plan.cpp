// Starts from the smallest settings and takes every improvement that fits, the best ones first.
#include "pipeline/plan/run_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>

#include "pipeline/errors.h"              // BudgetError
#include "pipeline/telemetry/progress.h"  // human_bytes
#include "stages/stage_table.h"

namespace coppice {
namespace {

// Resident beside what is counted: stacks of threads, HDF5, oneTBB, autograd, the allocator's own.
// Measured on blocks of 0.3 M to 880 M parameters (scripts/bench_stream.sh shows what is left).
constexpr uint64_t kGrowthBytes = uint64_t{48} << 20;
// Freed pages that the allocator keeps: a share of what stages hold.
constexpr double kAllocatorShare = 0.06;

constexpr uint64_t kSmallImage = uint64_t{64} << 20;  // two of them: not worth a thought

uint64_t window_bytes(const PlanInputs& in) {
  const uint64_t element = in.architecture.dtype == "F32" ? 4 : 2;
  return uint64_t(in.seqlen) * uint64_t(in.architecture.hidden) * element;
}

std::vector<HalfRange> windows_of_block(const PlanInputs& in) {
  return windows_of({0, 2}, in.recipe.reconstruct.window);
}

bool has_half_block_boundaries(const PlanInputs& in) {
  return in.recipe.reconstruct.window == WindowKind::kHalfBlock;
}

SpanShape shape_of(const PlanInputs& in, HalfRange halves) {
  return {in.architecture, halves, in.windows, in.seqlen, in.compute_bytes};
}

// ---- memory -------------------------------------------------------------------------------------

double held_by_stages(const PlanInputs& in, Calibrate::Convert convert) {
  double held = forward_stage(in.recipe.prune, convert)->cost(shape_of(in, {0, 2})).bytes_held;
  for (const HalfRange& window : windows_of_block(in)) {
    for (const auto& stage : adapt_stages(in.recipe.prune, in.recipe.reconstruct)) {
      held = std::max(held, stage->cost(shape_of(in, window)).bytes_held);
    }
  }
  return held;
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

std::vector<PlanItem> ram_items(const PlanInputs& in, const RunSettings& settings) {
  std::vector<PlanItem> items = {{"program, libraries, threads", in.process_bytes + kGrowthBytes}};
  if (in.is_host) {
    items.push_back({fmt::format("blocks read ahead ({} slots)", settings.slots),
                     uint64_t(settings.slots) * in.slot_bytes});
    const double held = held_by_stages(in, settings.convert);
    items.push_back({"work of the largest stage", uint64_t(held * (1 + kAllocatorShare))});
  } else {
    items.push_back({"staging buffers",
                     uint64_t(in.recipe.resources.num_slabs) * in.recipe.resources.slab_bytes});
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
  return {{fmt::format("blocks read ahead ({} slots)", settings.slots),
           uint64_t(settings.slots) * in.slot_bytes},
          {"work of the largest stage",
           uint64_t(held_by_stages(in, settings.convert) * (1 + kAllocatorShare))},
          {"adapted tensors", in.image_bytes}};
}

// ---- disk ---------------------------------------------------------------------------------------

std::vector<PlanItem> scratch_items(const PlanInputs& in, const RunSettings& settings) {
  const uint64_t window = window_bytes(in);
  // The input of the block being stored, of the one at work, and what the latter makes.
  std::vector<PlanItem> items = {
      {"hidden states between blocks (3)", 3 * window * uint64_t(in.windows)}};
  if (has_half_block_boundaries(in)) {
    items.push_back(
        {"hidden states inside a block", window * uint64_t(in.windows - settings.targets_in_ram)});
  }
  items.push_back({"journal, tokens, indices", uint64_t(16) << 20});
  return items;
}

// ---- time ---------------------------------------------------------------------------------------

struct Share {
  const char* name;
  double seconds;
};

PlannedStage timed(std::string name, const Cost& cost, const std::vector<Share>& shares) {
  PlannedStage stage{std::move(name), cost, 0, ""};
  double largest = 0;
  for (const Share& share : shares) {
    stage.seconds += share.seconds;
    if (share.seconds > largest) {
      largest = share.seconds;
      stage.bound = share.name;
    }
  }
  return stage;
}

double divided(double amount, double rate) { return rate > 0 ? amount / rate : 0; }

/// Adds the halves of one stage up: products of attention and MLP run at rates of their own.
PlannedStage stage_over_blocks(const PlanInputs& in, const Stage& stage,
                               const std::vector<HalfRange>& windows) {
  Cost total;
  double products = 0;
  for (const HalfRange& window : windows) {
    const Cost cost = stage.cost(shape_of(in, window));
    total += cost;
    double attention_half = 0;  // of the window's products
    if (window.last - window.first == 2) {
      attention_half = stage.cost(shape_of(in, {window.first, window.first + 1})).product_flop;
    } else if (half_of(window.first) == Half::kAttention) {
      attention_half = cost.product_flop;
    }
    products += divided(attention_half, in.rates.attention_product_flop) +
                divided(cost.product_flop - attention_half, in.rates.mlp_product_flop);
  }
  const double blocks = in.blocks_to_do;
  total.product_flop *= blocks;
  total.attention_flop *= blocks;
  total.bytes_touched *= blocks;
  total.bytes_moved *= blocks;
  total.weights_selected *= blocks;
  return timed(std::string(stage.name()), total,
               {{"products", products * blocks},
                {"attention", divided(total.attention_flop, in.rates.attention_flop)},
                {"memory", divided(total.bytes_touched, in.rates.touched_bytes)},
                {"selection", divided(total.weights_selected, in.rates.selected_weights)}});
}

/// Hidden states decoded and encoded: `moved` of all stages, less what is not made.
struct Traffic {
  double written = 0, read = 0;  // bytes, undone
};

Traffic traffic_of(const PlanInputs& in) {
  const double boundary = double(window_bytes(in)) * double(in.windows);
  const double blocks = in.blocks_to_do;
  Traffic traffic;
  traffic.written = boundary * (blocks * (has_half_block_boundaries(in) ? 2 : 1) + 1);
  traffic.read = boundary * blocks;  // the dense forward
  if (in.recipe.reconstruct.window == WindowKind::kNone) return traffic;
  const auto stages = adapt_stages(in.recipe.prune, in.recipe.reconstruct);
  for (const HalfRange& window : windows_of_block(in)) {
    for (const auto& stage : stages) {
      traffic.read += blocks * stage->cost(shape_of(in, window)).bytes_moved;
    }
  }
  return traffic;
}

/// Of `traffic`, what passes the disk: less what is kept in memory.
Traffic disk_traffic(const PlanInputs& in, const RunSettings& settings) {
  Traffic traffic = traffic_of(in);
  const double windows = std::max<double>(1, double(in.windows));
  const double targets = double(settings.targets_in_ram) / windows;
  const double inputs = double(settings.inputs_in_ram) / windows;
  if (has_half_block_boundaries(in)) {
    traffic.written -= 0.5 * targets * traffic.written;  // every other boundary
    // Inputs, middle and output of a block are read about equally often.
    traffic.read *= 1 - 0.5 * targets - 0.5 * inputs;
  } else {
    traffic.read *= 1 - inputs;
  }
  return traffic;
}

void add_times(const PlanInputs& in, RunPlan& plan) {
  plan.stages.clear();
  plan.compute_seconds = 0;
  const auto forward = forward_stage(in.recipe.prune, plan.settings.convert);
  plan.stages.push_back(stage_over_blocks(in, *forward, {{0, 1}, {1, 2}}));
  for (const auto& stage : adapt_stages(in.recipe.prune, in.recipe.reconstruct)) {
    plan.stages.push_back(stage_over_blocks(in, *stage, windows_of_block(in)));
  }
  const Traffic all = traffic_of(in);
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

// ---- the choice ---------------------------------------------------------------------------------

RunPlan with_settings(const PlanInputs& in, const RunSettings& settings) {
  RunPlan plan;
  plan.settings = settings;
  plan.ram = {"RAM", ram_items(in, settings), in.ram_limit, in.ram_limit_name};
  plan.device = {"device memory", device_items(in, settings), in.device_limit,
                 in.device_limit_name};
  plan.scratch = {"disk for hidden states", scratch_items(in, settings), in.scratch_limit,
                  in.scratch_limit_name};
  plan.output = {
      "disk for the output", {{"shards", in.output_bytes}}, in.output_limit, in.output_limit_name};
  if (in.same_disk) {  // what one takes the other cannot have
    plan.scratch.limit -= std::min(plan.scratch.limit, in.output_bytes);
  }
  return plan;
}

bool fits(const RunPlan& plan) {
  return plan.ram.fits() && (plan.device.items.empty() || plan.device.fits()) &&
         plan.scratch.fits() && plan.output.fits();
}

std::string complaint_about(const PlannedResource& resource) {
  std::string text = fmt::format("{}: {} needed, {} given by {}", resource.name,
                                 human_bytes(double(resource.bytes())),
                                 human_bytes(double(resource.limit)), resource.limit_name);
  for (const PlanItem& item : resource.items) {
    text += fmt::format("\n    {:>9}  {}", human_bytes(double(item.bytes)), item.name);
  }
  return text;
}

// What would bring the need down, by what weighs most.
std::string advice(const PlanInputs& in, const RunPlan& smallest) {
  std::string text;
  if (!smallest.ram.fits() || !smallest.device.fits()) {
    const PlannedResource& tight = smallest.ram.fits() ? smallest.device : smallest.ram;
    text += fmt::format("\n  It would fit into {} of {}", human_bytes(double(tight.bytes())),
                        tight.name);
    const auto with_window = [&](WindowKind kind, const char* flag) {
      PlanInputs changed = in;
      changed.recipe.reconstruct.window = kind;
      const std::vector<PlanItem> items = in.is_host ? ram_items(changed, smallest.settings)
                                                     : device_items(changed, smallest.settings);
      uint64_t bytes = 0;
      for (const PlanItem& item : items) bytes += item.bytes;
      if (bytes < tight.bytes()) {
        text += fmt::format("; with {} into {}", flag, human_bytes(double(bytes)));
      }
    };
    if (in.recipe.reconstruct.window == WindowKind::kBlock) {
      with_window(WindowKind::kHalfBlock, "--window half-block");
    }
    if (in.recipe.reconstruct.window != WindowKind::kNone) {
      with_window(WindowKind::kNone, "--window none");
    }
    text += ".";
  }
  if (!smallest.scratch.fits() || !smallest.output.fits()) {
    text += "\n  Make room, choose another --work-dir or --output-dir, or fewer --nsamples.";
  }
  return text;
}

[[noreturn]] void refuse(const PlanInputs& in, const RunPlan& smallest) {
  std::string text = "this run does not fit, not even with the smallest buffers";
  for (const PlannedResource* resource :
       {&smallest.ram, &smallest.device, &smallest.scratch, &smallest.output}) {
    if (!resource->items.empty() && !resource->fits()) text += "\n  " + complaint_about(*resource);
  }
  throw BudgetError(text + advice(in, smallest));
}

RunSettings smallest_settings(const PlanInputs& in) {
  RunSettings settings;
  settings.slots = std::max(1, in.recipe.resources.prefetch_blocks);
  settings.outputs = 1;
  settings.windows_ahead = settings.windows_behind = 1;
  settings.convert = Calibrate::Convert::kOnUse;
  return settings;
}

}  // namespace

uint64_t PlannedResource::bytes() const {
  uint64_t sum = 0;
  for (const PlanItem& item : items) sum += item.bytes;
  return sum;
}

RunPlan plan_run(const PlanInputs& in) {
  RunPlan plan = with_settings(in, smallest_settings(in));
  // A disk that is too small for the targets may do when they stay in memory.
  const bool targets_must_stay = !plan.scratch.fits() && has_half_block_boundaries(in);
  if (targets_must_stay) {
    RunSettings settings = plan.settings;
    settings.targets_in_ram = in.windows;
    if (fits(with_settings(in, settings))) plan = with_settings(in, settings);
  }
  if (!fits(plan)) refuse(in, plan);

  const auto improve = [&](const std::function<void(RunSettings&)>& change) {
    RunSettings settings = plan.settings;
    change(settings);
    const RunPlan better = with_settings(in, settings);
    if (fits(better)) plan = better;
  };
  // The best first: a read beside the compute, the codec beside both, no weight converted twice, a
  // shard that waits for the disk beside the next one.
  if (in.recipe.resources.prefetch_blocks == 0) {
    improve([](RunSettings& s) { s.slots = 2; });
  }
  improve([](RunSettings& s) { s.windows_ahead = s.windows_behind = 2; });
  improve([](RunSettings& s) { s.convert = Calibrate::Convert::kAhead; });
  improve([](RunSettings& s) { s.windows_ahead = s.windows_behind = 4; });
  // A second shard in memory pays where writing one takes longer than the next block's forward.
  add_times(in, plan);
  const double forward = plan.stages.front().seconds / std::max(1, in.blocks_to_do);
  const double write = divided(double(in.image_bytes), in.rates.written_bytes);
  if (in.rates.known() ? write > forward : in.image_bytes < kSmallImage) {
    improve([](RunSettings& s) { s.outputs = 2; });
  }

  // Hidden states that stay in memory spare the disk. Without a budget they are kept there only
  // where the disk would be what the run waits for: others want memory too.
  add_times(in, plan);
  const bool disk_is_slower = plan.disk_seconds > 0.8 * plan.compute_seconds && in.rates.known();
  if (!in.is_ram_limit_given && !disk_is_slower) return plan;
  const uint64_t usable = in.is_ram_limit_given ? plan.ram.limit : plan.ram.limit / 2;
  const uint64_t taken = plan.ram.bytes();
  uint64_t room = (usable - std::min(usable, taken)) / std::max<uint64_t>(1, window_bytes(in));
  if (has_half_block_boundaries(in)) {
    plan.settings.targets_in_ram =
        std::max(plan.settings.targets_in_ram, std::min<int64_t>(in.windows, int64_t(room)));
    room -= std::min(room, uint64_t(plan.settings.targets_in_ram));
  }
  plan.settings.inputs_in_ram = std::min<int64_t>(in.windows, int64_t(room / 2));
  plan = with_settings(in, plan.settings);
  add_times(in, plan);
  return plan;
}

}  // namespace coppice
