// Starts from the smallest settings and takes every improvement that fits, the best ones first.
#include "pipeline/plan/run_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "pipeline/plan/planned_memory.h"
#include "pipeline/plan/planned_time.h"
#include "pipeline/plan/planned_work.h"
#include "pipeline/telemetry/progress.h"  // human_bytes
#include "pipeline/token_windows.h"       // reads_sequences

namespace coppice {
namespace {

constexpr uint64_t kSmallStates = uint64_t{32} << 20;  // of the three boundaries that live at once
constexpr uint64_t kSmallImage = uint64_t{64} << 20;   // two of them: not worth a thought

/// The plan with these settings, whether it fits or not.
RunPlan estimate(const PlanInputs& in, const RunSettings& settings) {
  RunPlan plan;
  plan.settings = settings;
  add_memory(in, plan);
  add_times(in, plan);
  return plan;
}

/// The most windows whose hidden states fit on the disk, where nothing else is in the way; 0: none.
int64_t windows_that_fit(PlanInputs in, const RunSettings& smallest) {
  int64_t low = 0, high = in.windows;
  while (high - low > 1) {
    in.windows = (low + high) / 2;
    (fits(estimate(in, smallest)) ? low : high) = in.windows;
  }
  return low;
}

/// As human_bytes() and never less: who grants what it says is not refused again.
std::string granted_bytes(uint64_t bytes) {
  double unit = 1;
  while (double(bytes) / unit >= 1024) unit *= 1024;
  const double digit = unit == 1 || double(bytes) / unit >= 100 ? unit : unit / 10;
  return human_bytes(std::ceil(double(bytes) / digit) * digit);
}

// What would bring the need down, by what weighs most.
std::string advice(const PlanInputs& in, const RunPlan& smallest) {
  std::string text;
  if (!smallest.ram.fits() || !smallest.device.fits()) {
    const PlannedResource& tight = smallest.ram.fits() ? smallest.device : smallest.ram;
    text += fmt::format("\n  It would fit into {} of {}", granted_bytes(tight.bytes()), tight.name);
    const auto with_window = [&](WindowKind kind, const char* flag) {
      PlanInputs changed = in;
      const auto blocks = uint64_t(blocks_per_span(in.recipes));
      changed.recipes.front().reconstruct.window = {kind};
      changed.slot_bytes /= blocks;
      changed.widened_bytes /= blocks;
      changed.unaligned_bytes /= blocks;
      changed.image_bytes /= blocks;
      changed.mask_bytes /= blocks;
      const RunPlan other = estimate(changed, smallest.settings);
      const uint64_t bytes = (smallest.ram.fits() ? other.device : other.ram).bytes();
      if (bytes < tight.bytes()) {
        text += fmt::format("; with {} into {}", flag, granted_bytes(bytes));
      }
    };
    const Window& window = in.recipes.front().reconstruct.window;
    const bool is_one = in.recipes.size() == 1;
    if (is_one && window.blocks > 1) with_window(WindowKind::kBlock, "--window block");
    if (is_one && window.kind == WindowKind::kBlock) {
      with_window(WindowKind::kHalfBlock, "--window half-block");
    }
    if (is_one && window.kind != WindowKind::kNone) {
      with_window(WindowKind::kNone, "--window none");
    }
    text += is_one ? "." : "; fewer recipes, or smaller windows, take less.";
  }
  if (!smallest.scratch.fits() || !smallest.output.fits()) {
    text += "\n  Make room, or choose another --work-dir or --output-dir";
    const int64_t windows =
        reads_sequences(in.architecture) ? 0 : windows_that_fit(in, smallest.settings);
    if (windows > 1) text += fmt::format("; --nsamples {} would fit on the disk", windows);
    text += ".";
  }
  return text;
}

[[noreturn]] void refuse(const PlanInputs& in, const RunPlan& smallest) {
  std::string text = "this run does not fit, not even with the smallest buffers";
  for (const PlannedResource* resource :
       {&smallest.ram, &smallest.device, &smallest.scratch, &smallest.output}) {
    if (!resource->items.empty() && !resource->fits()) text += "\n  " + complaint_about(*resource);
  }
  throw PlanRefused(text + advice(in, smallest), smallest);
}

RunSettings smallest_settings(const PlanInputs& in, bool recompute_targets, KeptActivations kept) {
  RunSettings settings;
  settings.recompute_targets = recompute_targets;
  settings.kept_activations = kept;
  settings.slots = std::max(1, in.resources().prefetch_blocks);
  settings.outputs = in.devices;  // each device adapts into one
  settings.windows_ahead = settings.windows_behind = 1;
  settings.convert = Calibrate::Convert::kOnUse;
  return settings;
}

[[noreturn]] void refuse_scoring(const PlanInputs& in) {
  RunPlan plan = estimate(in, smallest_settings(in, false, KeptActivations::kAll));
  plan.ram = in.scoring_ram;
  if (!in.is_host) plan.device = in.scoring_device;
  throw PlanRefused(in.scoring_refusal, plan);
}

/// Hidden states that stay in memory spare the disk, and the wait for it between blocks. Small ones
/// always do; without a budget larger ones only where the disk would be what the run waits for:
/// others want memory too.
RunPlan with_hidden_states_in_ram(const PlanInputs& in, const RunPlan& plan) {
  const bool disk_is_slower = plan.disk_seconds > 0.8 * plan.compute_seconds && in.rates.known();
  RunSettings settings = plan.settings;
  const uint64_t usable = in.is_ram_limit_given ? plan.ram.limit : plan.ram.limit / 2;
  const uint64_t taken = plan.ram.bytes();
  uint64_t room_bytes = usable - std::min(usable, taken);
  if (!in.is_ram_limit_given && !disk_is_slower) room_bytes = std::min(room_bytes, kSmallStates);
  uint64_t room = room_bytes / std::max<uint64_t>(1, window_bytes(in));
  const int between = boundaries_between(in, settings);
  const int inside = streams_inside(in, settings.recompute_targets) * spans_begun(in, settings);
  // Some of many: not worth the memory.
  const bool all_fit = int64_t(room) >= (inside + between) * in.windows;
  if (!all_fit && !in.is_ram_limit_given && !disk_is_slower) return plan;
  if (inside > 0) {
    const int64_t more = std::min(in.windows - settings.targets_in_ram, int64_t(room) / inside);
    settings.targets_in_ram += more;
    room -= uint64_t(inside) * uint64_t(more);
  }
  settings.inputs_in_ram = std::min<int64_t>(in.windows, int64_t(room) / between);
  RunPlan better = estimate(in, settings);
  return fits(better) ? better : plan;
}

/// The fastest plan with targets cached or recomputed; nothing if not even the smallest fits.
std::optional<RunPlan> best_plan(const PlanInputs& in, bool recompute_targets,
                                 KeptActivations kept) {
  RunPlan plan = estimate(in, smallest_settings(in, recompute_targets, kept));
  if (!plan.scratch.fits() && has_half_block_boundaries(in) && !recompute_targets) {
    // A disk that is too small for the targets may do when they stay in memory.
    RunSettings settings = plan.settings;
    settings.targets_in_ram = in.windows;
    plan = estimate(in, settings);
  }
  if (!fits(plan)) return std::nullopt;

  const auto improve = [&](const std::function<void(RunSettings&)>& change) {
    RunSettings settings = plan.settings;
    change(settings);
    RunPlan better = estimate(in, settings);
    if (fits(better)) plan = std::move(better);
  };
  // The best first: a read beside the compute, the codec beside both, no weight converted twice, a
  // shard that waits for the disk beside the next one.
  if (in.resources().prefetch_blocks == 0) {
    improve([](RunSettings& s) { s.slots = 2; });
  }
  improve([](RunSettings& s) { s.windows_ahead = s.windows_behind = 2; });
  improve([](RunSettings& s) { s.convert = Calibrate::Convert::kAhead; });
  improve([](RunSettings& s) { s.windows_ahead = s.windows_behind = 4; });
  // A second shard in memory pays where writing one takes longer than the next block's forward.
  const bool has_forward = plan.stages.front().name == "calibrate";
  const double spans = double(std::max(1, in.blocks_to_do)) / blocks_per_span(in.recipes);
  const double forward = has_forward ? plan.stages.front().seconds / spans : 0;
  const double write =
      in.rates.written_bytes > 0 ? double(in.image_bytes) / in.rates.written_bytes : 0;
  if (in.rates.known() ? write > forward : in.image_bytes < kSmallImage) {
    improve([](RunSettings& s) { ++s.outputs; });
  }
  return with_hidden_states_in_ram(in, plan);
}

/// The faster of the two; nothing if neither fits.
std::optional<RunPlan> faster_targets(const PlanInputs& in, KeptActivations kept) {
  const std::string& wanted = in.resources().half_block_targets;
  std::optional<RunPlan> cached, recomputed;
  if (wanted != "recomputed" || !has_half_block_boundaries(in)) {
    cached = best_plan(in, false, kept);
  }
  if (wanted != "cached" && has_half_block_boundaries(in)) recomputed = best_plan(in, true, kept);
  if (!cached || (recomputed && recomputed->seconds < cached->seconds)) return recomputed;
  return cached;
}

}  // namespace

bool fits(const RunPlan& plan) {
  return plan.ram.fits() && (plan.device.items.empty() || plan.device.fits()) &&
         plan.scratch.fits() && plan.output.fits();
}

uint64_t PlannedResource::bytes() const {
  uint64_t sum = 0;
  for (const PlanItem& item : items) sum += item.bytes;
  return sum;
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

RunPlan plan_run(const PlanInputs& in) {
  if (!in.scoring_refusal.empty()) refuse_scoring(in);
  // Computing activations again takes time in every step: only where nothing else would do.
  std::vector<KeptActivations> ways = {KeptActivations::kAll};
  if (has_windows_of_halves(in)) ways.push_back(KeptActivations::kOfOneHalf);
  for (const KeptActivations kept : ways) {
    if (const std::optional<RunPlan> plan = faster_targets(in, kept)) return *plan;
  }
  const bool recomputes =
      in.resources().half_block_targets == "recomputed" && has_half_block_boundaries(in);
  refuse(in, estimate(in, smallest_settings(in, recomputes, ways.back())));
}

}  // namespace coppice
