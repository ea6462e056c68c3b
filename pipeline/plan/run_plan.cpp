// Starts from the smallest settings and takes every improvement that fits, the best ones first.
#include "pipeline/plan/run_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <optional>

#include "pipeline/plan/planned_work.h"
#include "pipeline/plan/refusal.h"
#include "pipeline/plan/smallest_settings.h"
#include "pipeline/telemetry/progress.h"  // human_bytes

namespace coppice {
namespace {

constexpr uint64_t kSmallStates = uint64_t{32} << 20;  // of the three boundaries that live at once
constexpr uint64_t kSmallImage = uint64_t{64} << 20;   // two of them: not worth a thought

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
  RunPlan better = plan_with(in, settings);
  return fits(better) ? better : plan;
}

/// The fastest plan that has targets and activations as this one, which fits.
RunPlan improved(const PlanInputs& in, RunPlan plan) {
  const auto improve = [&](const std::function<void(RunSettings&)>& change) {
    RunSettings settings = plan.settings;
    change(settings);
    RunPlan better = plan_with(in, settings);
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
  if (!in.scoring_refusal.empty()) refuse(in);
  std::optional<RunPlan> best;
  for (const RunSettings& smallest : smallest_settings(in)) {
    // Computing activations again takes time in every step: only where nothing else would do.
    if (best && best->settings.kept_activations != smallest.kept_activations) break;
    // Where the disk has room for the targets, memory may be wanted by others.
    if (best && smallest.targets_in_ram > 0) continue;
    RunPlan plan = plan_with(in, smallest);
    if (!fits(plan)) continue;
    plan = improved(in, std::move(plan));
    if (!best || plan.seconds < best->seconds) best = std::move(plan);
  }
  if (!best) refuse(in);
  return *best;
}

}  // namespace coppice
