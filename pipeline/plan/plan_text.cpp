#include "pipeline/plan/plan_text.h"

#include <fmt/format.h>

#include "pipeline/plan/planned_work.h"   // has_half_block_boundaries
#include "pipeline/telemetry/progress.h"  // human_bytes, human_seconds

namespace coppice {
namespace {

using nlohmann::json;

std::string size(uint64_t bytes) { return human_bytes(double(bytes)); }

std::string resource_lines(const PlannedResource& resource) {
  if (resource.items.empty()) return "";
  std::string text = fmt::format("{:<26} {:>10}   of {} ({})\n", resource.name,
                                 size(resource.bytes()), size(resource.limit), resource.limit_name);
  if (resource.items.size() == 1) return text;
  for (const PlanItem& item : resource.items) {
    text += fmt::format("    {:>10}  {}\n", size(item.bytes), item.name);
  }
  return text;
}

std::string input_line(const PlanInputs& inputs) {
  return fmt::format("{:<26} {:>10}   is there; {} free on {}\n", "disk of the input",
                     size(inputs.input_bytes), size(inputs.input_free_bytes), inputs.input_place);
}

bool has_targets(const PlanInputs& inputs) { return has_half_block_boundaries(inputs); }

std::string tier_of(int64_t in_ram, int64_t windows) {
  if (in_ram == 0) return "on disk";
  if (in_ram == windows) return "in RAM";
  return fmt::format("{} of {} windows in RAM, the rest on disk", in_ram, windows);
}

std::string settings_lines(const RunPlan& plan, const PlanInputs& inputs) {
  const RunSettings& s = plan.settings;
  const ResourceOptions& resources = inputs.resources();
  std::string text = fmt::format(
      "blocks in memory           {}{}, read through {} staging buffers of {}; shards in memory "
      "{}\n"
      "hidden states              {} windows read ahead, {} behind; between blocks on disk{}\n",
      s.slots, inputs.devices > 1 ? fmt::format(" on each of {} devices", inputs.devices) : "",
      resources.num_slabs, size(resources.slab_bytes), s.outputs, s.windows_ahead, s.windows_behind,
      s.inputs_in_ram > 0
          ? fmt::format(" and {} of {} windows in RAM", s.inputs_in_ram, inputs.windows)
          : "");
  if (has_targets(inputs)) {
    text +=
        fmt::format("half-block targets         {}\n",
                    s.recompute_targets ? "recomputed from the block's input with its dense weights"
                                        : "cached, " + tier_of(s.targets_in_ram, inputs.windows));
  }
  if (s.kept_activations == KeptActivations::kOfOneHalf) {
    text +=
        "activations of a window    computed again on the way back, half by half: the budget has "
        "no room for all\n";
  }
  if (s.convert == Calibrate::Convert::kOnUse) {
    text +=
        "weights                    converted for every product: the budget has no room for more\n";
  }
  return text;
}

std::string time_lines(const RunPlan& plan, const PlanInputs& inputs) {
  if (!inputs.rates.known()) return "time                       not estimated: --probe false\n";
  std::string text = "\n";
  for (const PlannedStage& stage : plan.stages) {
    text += fmt::format("{:<26} {:>12}   bound by {}\n", stage.name, human_seconds(stage.seconds),
                        stage.bound.empty() ? "nothing" : stage.bound);
  }
  const bool disk = plan.disk_seconds > plan.compute_seconds;
  return text + fmt::format("{:<26} {:>12}   bound by {}\n", "in all", human_seconds(plan.seconds),
                            disk ? "the disk" : "compute");
}

json resource_json(const PlannedResource& resource) {
  json items = json::array();
  for (const PlanItem& item : resource.items) {
    items.push_back({{"name", item.name}, {"bytes", item.bytes}});
  }
  return {{"bytes", resource.bytes()},
          {"limit_bytes", resource.limit},
          {"limit", resource.limit_name},
          {"items", items}};
}

}  // namespace

std::string plan_text(const RunPlan& plan, const PlanInputs& inputs) {
  return input_line(inputs) + resource_lines(plan.ram) + resource_lines(plan.device) +
         resource_lines(plan.scratch) + resource_lines(plan.output) +
         fmt::format("{:<26} {:>10}, written {}\n", "bytes read", size(plan.bytes_read),
                     size(plan.bytes_written)) +
         settings_lines(plan, inputs) + time_lines(plan, inputs);
}

json plan_json(const RunPlan& plan, const PlanInputs& inputs) {
  const bool known = inputs.rates.known();
  const auto seconds = [&](double value) { return known ? json(value) : json(); };
  json stages = json::array();
  for (const PlannedStage& stage : plan.stages) {
    stages.push_back({{"name", stage.name},
                      {"seconds", seconds(stage.seconds)},
                      {"bound", stage.bound},
                      {"flop", stage.cost.flop()}});
  }
  const RunSettings& s = plan.settings;
  const Rates& rates = inputs.rates;
  return {
      {"fits", fits(plan)},
      {"model",
       {{"family", inputs.architecture.family}, {"blocks", inputs.architecture.num_blocks}}},
      {"windows", inputs.windows},
      {"seqlen", inputs.seqlen},
      {"input",
       {{"bytes", inputs.input_bytes},
        {"free_bytes", inputs.input_free_bytes},
        {"directory", inputs.input_place}}},
      {"ram", resource_json(plan.ram)},
      {"device", resource_json(plan.device)},
      {"scratch", resource_json(plan.scratch)},
      {"output", resource_json(plan.output)},
      {"bytes_read", plan.bytes_read},
      {"bytes_written", plan.bytes_written},
      {"settings",
       {{"devices", inputs.devices},
        {"slots", s.slots},
        {"outputs", s.outputs},
        {"slab_bytes", inputs.resources().slab_bytes},
        {"num_slabs", inputs.resources().num_slabs},
        {"windows_ahead", s.windows_ahead},
        {"windows_behind", s.windows_behind},
        {"convert", s.convert == Calibrate::Convert::kAhead ? "ahead" : "on use"},
        {"activations", s.kept_activations == KeptActivations::kAll ? "kept" : "computed again"},
        {"targets", s.recompute_targets ? "recomputed" : "cached"},
        {"targets_in_ram", s.targets_in_ram},
        {"inputs_in_ram", s.inputs_in_ram}}},
      {"stages", stages},
      {"compute_seconds", seconds(plan.compute_seconds)},
      {"disk_seconds", seconds(plan.disk_seconds)},
      {"seconds", seconds(plan.seconds)},
      {"rates",
       {{"attention_product_flop_per_second", rates.attention_product_flop},
        {"mlp_product_flop_per_second", rates.mlp_product_flop},
        {"attention_flop_per_second", rates.attention_flop},
        {"touched_bytes_per_second", rates.touched_bytes},
        {"selected_weights_per_second", rates.selected_weights},
        {"new_memory_bytes_per_second", rates.new_memory_bytes},
        {"encoded_bytes_per_second", rates.encoded_bytes},
        {"decoded_bytes_per_second", rates.decoded_bytes},
        {"codec_ratio", rates.codec_ratio},
        {"read_bytes_per_second", rates.read_bytes},
        {"written_bytes_per_second", rates.written_bytes}}},
      {"corrections", rates.corrections}};
}

}  // namespace coppice
