#include "pipeline/plan/planned_time.h"

#include <algorithm>

#include "pipeline/plan/planned_work.h"
#include "pipeline/plan/stage_time.h"
#include "pipeline/survey.h"
#include "stages/model/half_cost.h"
#include "stages/stage_table.h"
#include "stages/units/unit_saliency.h"

namespace coppice {
namespace {

double divided(double amount, double rate) { return rate > 0 ? amount / rate : 0; }

PlannedStage timed(const PlanInputs& in, std::string name, const StageWork& work,
                   const std::string& rehearsed_as) {
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

/// The work of one span on all of them.
PlannedStage over_spans(const PlanInputs& in, std::string name, const StageWork& of_a_span,
                        const std::string& rehearsed_as) {
  return timed(in, std::move(name), spans_to_do(in) * of_a_span, rehearsed_as);
}

PlannedStage over_spans(const PlanInputs& in, const Stage& stage,
                        const std::vector<HalfRange>& windows,
                        KeptActivations kept = KeptActivations::kAll) {
  const std::string name(stage.name());
  return over_spans(in, name, work_of(stage, windows, shape_of(in, span_of(in), kept)), name);
}

/// Hidden states decoded and encoded: `moved` of all stages, less what is not made.
struct Traffic {
  double written = 0, read = 0;  // bytes, undone
};

Traffic traffic_of(const PlanInputs& in, const RunSettings& settings) {
  const double boundary = double(window_bytes(in)) * double(in.windows);
  const double spans = spans_to_do(in);
  const bool has_dense = forward_stage(in, settings.convert) != nullptr;
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

/// Before the run: the whole model, forward and back.
void add_scoring(const PlanInputs& in, std::vector<PlannedStage>& stages) {
  if (in.scoring_ram.items.empty()) return;
  const Architecture& architecture = in.architecture;
  const double tokens = double(in.windows) * double(in.seqlen);
  const int64_t stored_bytes = architecture.dtype == "F32" ? 4 : 2;
  StageWork work;
  work.cost = unit_saliency_cost(
      architecture, in.windows, {1, in.seqlen, double(in.compute_bytes), in.is_host}, stored_bytes);
  work.attention_products =
      double(architecture.num_blocks) * linear_flop(architecture, Half::kAttention, 3 * tokens);
  stages.push_back(timed(in, "unit scores", work, "calibrate"));
}

/// Before the run: the dense forward once more, and on a few blocks every rate that is tried.
void add_survey(const PlanInputs& in, KeptActivations kept, std::vector<PlannedStage>& stages) {
  if (std::none_of(in.recipes.begin(), in.recipes.end(), is_open)) return;
  PlannedStage survey = over_spans(in, Calibrate({.statistics = Calibrate::Statistics::kSquares}),
                                   windows_of(span_of(in), {WindowKind::kNone}));
  const double blocks = double(trial_blocks(int(in.architecture.num_blocks)).size());
  const double share = std::min(1.0, blocks / std::max(1.0, spans_to_do(in)));
  for (const Recipe& recipe : in.recipes) {
    if (recipe.reconstruct.lr > 0) continue;
    for (const auto& stage : adapt_stages(recipe.prune, recipe.reconstruct)) {
      const PlannedStage run = over_spans(in, *stage, windows_of_span(in, recipe), kept);
      survey.seconds += share * double(tried_rates().size()) * run.seconds;
    }
  }
  survey.name = "survey";
  stages.push_back(std::move(survey));
}

}  // namespace

void add_times(const PlanInputs& in, RunPlan& plan) {
  if (const auto forward = forward_stage(in, plan.settings.convert)) {
    plan.stages.push_back(over_spans(in, *forward, windows_of(span_of(in), {WindowKind::kNone})));
  }
  for (const Recipe& recipe : in.recipes) {
    for (const auto& stage : adapt_stages(in, recipe)) {
      add_to(plan.stages,
             over_spans(in, *stage, windows_of_span(in, recipe), plan.settings.kept_activations));
    }
  }
  add_survey(in, plan.settings.kept_activations, plan.stages);
  add_scoring(in, plan.stages);
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
  const double codec_seconds =
      (divided(all.written, in.rates.encoded_bytes) + divided(all.read, in.rates.decoded_bytes)) /
      std::max(1, in.codec_threads);
  if (in.is_host) {  // the codec takes its share of the cores that compute
    plan.stages.push_back({"codec", {}, codec_seconds, "cores"});
    const uint64_t beside = std::min(plan.ram.bytes(), in.process_bytes);
    plan.stages.push_back({"first touch of memory",
                           {},
                           divided(double(plan.ram.bytes() - beside), in.rates.new_memory_bytes),
                           "memory"});
  }
  for (const PlannedStage& stage : plan.stages) plan.compute_seconds += stage.seconds;
  plan.compute_seconds /= in.devices;
  // The rest of the model is copied before the stream starts.
  const double copied = divided(double(in.outer_bytes), in.rates.read_bytes) +
                        divided(double(in.outer_bytes), in.rates.written_bytes);
  plan.disk_seconds =
      divided(double(plan.bytes_read - in.outer_bytes), in.rates.read_bytes) +
      divided(double(plan.bytes_written - std::min(plan.bytes_written, in.outer_bytes)),
              in.rates.written_bytes);
  plan.stages.push_back({"disk (beside it)", {}, plan.disk_seconds, "disk"});
  double longest = std::max(plan.compute_seconds, plan.disk_seconds);
  if (!in.is_host) {
    plan.stages.push_back({"codec (beside it)", {}, codec_seconds, "cores"});
    longest = std::max(longest, codec_seconds);
  }
  // The first block's read and the last one's write have nothing to hide behind.
  const double spans = std::max(1.0, spans_to_do(in));
  const double ends = divided(double(in.block_read_bytes) / spans, in.rates.read_bytes) +
                      divided(double(adapted_bytes(in)), in.rates.written_bytes);
  plan.seconds = longest + ends + copied;
}

}  // namespace coppice
