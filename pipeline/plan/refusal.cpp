#include "pipeline/plan/refusal.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>

#include "configs/errors.h"  // ConfigError
#include "pipeline/plan/smallest_settings.h"
#include "pipeline/run_checks.h"
#include "pipeline/telemetry/progress.h"  // human_bytes
#include "pipeline/token_windows.h"       // reads_sequences

namespace coppice {
namespace {

// The next process of the same arguments has other pages before it plans. Of 60 most lay within
// 0.6 MiB, a few had 2 MiB more, and `coppice plan` counts some 4 MiB more than a run has.
constexpr uint64_t kProcessesDiffer = uint64_t{8} << 20;

uint64_t missing(const PlannedResource& resource) {
  return resource.bytes() - std::min(resource.bytes(), resource.limit);
}

/// Of the smallest plans the one to tell of: it lacks the fewest resources, then the least memory,
/// then the least of the disk.
RunPlan nearest_plan(const PlanInputs& in) {
  using Lack = std::tuple<int, uint64_t, uint64_t, uint64_t>;
  std::optional<RunPlan> nearest;
  Lack least;
  for (const RunSettings& settings : smallest_settings(in)) {
    RunPlan plan = plan_with(in, settings);
    const uint64_t memory = missing(plan.ram) + missing(plan.device), disk = missing(plan.scratch);
    const Lack lack = {int(memory > 0) + int(disk > 0), memory, disk,
                       plan.ram.bytes() + plan.device.bytes()};
    if (nearest && lack >= least) continue;
    nearest = std::move(plan);
    least = lack;
  }
  return *nearest;
}

/// The most windows whose hidden states fit on the disk, where nothing else is in the way; 0: none.
int64_t windows_that_fit(PlanInputs in) {
  int64_t low = 0, high = in.windows;
  while (high - low > 1) {
    in.windows = (low + high) / 2;
    (fits(nearest_plan(in)) ? low : high) = in.windows;
  }
  return low;
}

/// As human_bytes() and never less.
std::string rounded_up(uint64_t bytes) {
  double unit = 1;
  while (double(bytes) / unit >= 1024) unit *= 1024;
  const double digit = unit == 1 || double(bytes) / unit >= 100 ? unit : unit / 10;
  return human_bytes(std::ceil(double(bytes) / digit) * digit);
}

/// What `plan` takes of the memory that `tight` has too little of: "2.1 GiB of RAM".
std::string memory_wanted(const RunPlan& plan, const RunPlan& tight) {
  std::string text;
  if (!tight.ram.fits()) {
    text = rounded_up(plan.ram.bytes() + kProcessesDiffer) + " of " + plan.ram.name;
  }
  if (!tight.device.fits()) {
    text +=
        (text.empty() ? "" : " and ") + rounded_up(plan.device.bytes()) + " of " + plan.device.name;
  }
  return text;
}

/// Whether it takes less of the memory that `tight` has too little of, no more of the disk if that
/// is too small, and of the rest no more than there is.
bool is_easier(const RunPlan& plan, const RunPlan& tight) {
  const auto is_possible = [&](const PlannedResource RunPlan::*resource) {
    return (tight.*resource).fits() ? (plan.*resource).fits()
                                    : (plan.*resource).bytes() <= (tight.*resource).bytes();
  };
  const auto takes_less = [&](const PlannedResource RunPlan::*resource) {
    return !(tight.*resource).fits() && (plan.*resource).bytes() < (tight.*resource).bytes();
  };
  return is_possible(&RunPlan::ram) && is_possible(&RunPlan::device) &&
         is_possible(&RunPlan::scratch) && is_possible(&RunPlan::output) &&
         (takes_less(&RunPlan::ram) || takes_less(&RunPlan::device));
}

/// Whether a recipe that was valid before one of its keys was changed still is.
bool is_valid(Recipe recipe, const PlanInputs& in) {
  std::vector<std::string> stated;  // all: what was left open is resolved by now
  for (const RecipeKey& key : recipe_keys()) stated.push_back(key.path());
  try {
    check_recipe(recipe, stated, in.is_judged ? JudgedBy::kSweep : JudgedBy::kItsWindows);
    check_against_model(recipe, in.architecture, TokenWindows{});
  } catch (const ConfigError&) {
    return false;
  }
  return true;
}

/// The same run by smaller windows; nothing where the recipe would have no meaning then.
std::optional<PlanInputs> with_window(PlanInputs in, WindowKind kind) {
  const auto blocks = uint64_t(blocks_per_span(in.recipes));
  in.recipes.front().reconstruct.window = {kind};
  if (!is_valid(in.recipes.front(), in)) return std::nullopt;
  if (blocks > 1) in.slot_bytes = in.block_slot_bytes;
  in.widened_bytes /= blocks;
  in.unaligned_bytes /= blocks;
  in.image_bytes /= blocks;
  in.mask_bytes /= blocks;
  return in;
}

std::string advice_on_windows(const PlanInputs& in, const RunPlan& tight) {
  const Window& window = in.recipes.front().reconstruct.window;
  std::string text;
  const auto offer = [&](WindowKind kind, const char* flag) {
    const std::optional<PlanInputs> changed = with_window(in, kind);
    if (!changed) return;
    const RunPlan plan = nearest_plan(*changed);
    if (is_easier(plan, tight)) {
      text += fmt::format("; with {} into {}", flag, memory_wanted(plan, tight));
    }
  };
  if (window.blocks > 1) offer(WindowKind::kBlock, "--window block");
  if (window.kind == WindowKind::kBlock) offer(WindowKind::kHalfBlock, "--window half-block");
  if (window.kind != WindowKind::kNone) offer(WindowKind::kNone, "--window none");
  return text;
}

// What would bring the need down, by what weighs most.
std::string advice(const PlanInputs& in, const RunPlan& tight) {
  std::string text;
  if (!tight.ram.fits() || !tight.device.fits()) {
    text += "\n  It would fit into " + memory_wanted(tight, tight);
    text +=
        in.recipes.size() == 1
            ? advice_on_windows(in, tight) + "."
            : "; fewer recipes, smaller windows, or a smaller --validation-fraction, take less.";
  }
  if (!tight.scratch.fits() || !tight.output.fits()) {
    text += "\n  Make room, or choose another --work-dir or --output-dir";
    const int64_t windows = reads_sequences(in.architecture) ? 0 : windows_that_fit(in);
    if (windows > 1) text += fmt::format("; --nsamples {} would fit on the disk", windows);
    text += ".";
  }
  return text;
}

std::string complaints_about(const RunPlan& run) {
  std::string text = "this run does not fit, not even with the smallest buffers";
  for (const PlannedResource* resource : {&run.ram, &run.device, &run.scratch, &run.output}) {
    if (!resource->items.empty() && !resource->fits()) text += "\n  " + complaint_about(*resource);
  }
  return text;
}

void take_larger(const PlannedResource& scoring, PlannedResource& resource) {
  if (scoring.bytes() > resource.bytes()) resource = scoring;
}

}  // namespace

void refuse(const PlanInputs& in) {
  if (in.scoring_refusal.empty()) {
    const RunPlan plan = nearest_plan(in);
    throw PlanRefused(complaints_about(plan) + advice(in, plan), plan);
  }
  PlanInputs streamed = in;  // by itself
  streamed.scoring_ram = streamed.scoring_device = {};
  RunPlan run = nearest_plan(streamed);
  const std::string text = in.scoring_refusal +
                           (fits(run) ? "" : "\n  Besides, " + complaints_about(run)) +
                           advice(in, nearest_plan(in));
  take_larger(in.scoring_ram, run.ram);
  take_larger(in.scoring_device, run.device);
  throw PlanRefused(text, run);
}

}  // namespace coppice
