#include "pipeline/telemetry/run_report.h"

#include <fmt/format.h>

#include "pipeline/telemetry/json_text.h"
#include "pipeline/telemetry/process.h"
#include "pipeline/telemetry/progress.h"  // human_seconds
#include "pipeline/telemetry/zeros.h"
#include "storage/io/file.h"  // sha256_file

namespace coppice {

using nlohmann::json;

namespace {

json typed(const std::string& text) {
  const json value = json::parse(text, nullptr, /*allow_exceptions=*/false);
  return value.is_discarded() ? json(text) : value;
}

}  // namespace

json recipe_json(const Recipe& recipe) {
  json out = json::object();
  for (const RecipeKey& key : recipe_keys()) out[key.section][key.name] = typed(key.get(recipe));
  return out;
}

json model_report(const SourceModel& model) {
  json report = {{"path", model.checkpoint.directory().string()},
                 {"architecture", model.architecture.family},
                 {"parameters", count_parameters(model)},
                 {"sha256", sha256_file(model.checkpoint.index_path())}};
  if (model.architecture.scale_block.is_there()) {
    report["note"] = "weights were FP8 with block scales; written as bf16";
  }
  return report;
}

json block_report(int block, const std::string& prefix, const Variant& variant) {
  json windows = json::array();
  for (const WindowReport& window : variant.windows) {
    if (window.halves.first_block() != block) continue;
    windows.push_back(
        {{"name", window.name},
         {"loss_pruned", finite_or_null(window.loss_pruned)},
         {"loss_reconstructed", finite_or_null(window.loss_reconstructed)},
         {"validation_pruned", finite_or_null(window.validation_pruned)},
         {"validation_fitted", finite_or_null(window.validation_fitted)},
         {"validation_reconstructed", finite_or_null(window.validation_reconstructed)},
         {"kept", window.kept},
         {"steps", window.steps},
         {"ridge", std::isinf(window.ridge) ? json() : json(window.ridge)},
         {"lr", window.lr},
         {"retries", window.retries},
         {"micro_batch", window.micro_batch},
         {"fallback", window.fallback},
         {"seconds", window.seconds}});
  }
  json linears = json::array();
  for (const LinearReport& linear : variant.linears) {
    if (!linear.name.starts_with(prefix)) continue;
    linears.push_back({{"name", linear.name},
                       {"method", linear.method},
                       {"sparsity", linear.sparsity},
                       {"weights", linear.weights},
                       {"pattern", linear.pattern},
                       {"fallback", linear.fallback}});
  }
  json trained = json::array();
  for (const std::string& name : variant.trained) {
    if (name.starts_with(prefix)) trained.push_back(name);
  }
  return {{"block", block}, {"windows", windows}, {"linears", linears}, {"trained", trained}};
}

json waits_report(const SpanTimes& times, double waited_for_activations, SpanTimes::Time stored) {
  const SpanWaits waits = waits_of(times);
  const SpanSeconds seconds = seconds_of(times);
  return {{"waits",
           {{"compute_for_weights", waits.compute_for_weights},
            {"compute_for_activations", waited_for_activations},
            {"compute_for_shard_buffer", waits.compute_for_shard_buffer},
            {"reads_for_slot", waits.reads_for_slot}}},
          {"times",
           {{"read_seconds", seconds.read},
            {"forward_seconds", seconds.forward},
            {"adapt_seconds", seconds.adapt},
            {"store_seconds", seconds_between(times.store_begin, stored)}}}};
}

json totals_report(const RunMeters& meters, const RunTotals& totals) {
  const double waited = meters.waits.seconds() + totals.device_idle_seconds;
  json stages = json::object();
  for (const auto& [name, stage] : totals.stages) {
    stages[name] = {{"seconds", stage.seconds}, {"flop", stage.flop}};
  }
  return {{"wall_seconds", totals.wall_seconds},
          {"compute_seconds", meters.device_busy.seconds() - meters.waits.seconds()},
          {"read_seconds", meters.reads.seconds()},
          {"write_seconds", meters.writes.seconds()},
          {"compute_waited_for_io_seconds", waited},
          {"bytes_read", meters.reads.bytes()},
          {"bytes_written", meters.writes.bytes()},
          {"peak_rss_bytes", peak_rss_bytes()},
          {"peak_device_bytes", totals.peak_device_bytes},
          {"resumed", totals.resumed},
          {"stages", stages},
          {"activation_cache",
           {{"raw_bytes", meters.cache_raw.bytes()},
            {"stored_bytes", meters.cache_stored.bytes()},
            {"encode_seconds", meters.encode.seconds()},
            {"decode_seconds", meters.decode.seconds()},
            {"decoded_bytes", meters.decode.bytes()}}}};
}

json plan_against_run(const json& plan, const RunMeters& meters, const RunTotals& totals) {
  const auto compare = [](const json& planned, double measured) {
    const double expected = planned.is_null() ? 0 : planned.get<double>();
    return json{{"planned", planned},
                {"measured", measured},
                {"ratio", expected > 0 ? json(measured / expected) : json()}};
  };
  json stages = json::object();
  for (const json& stage : plan.at("stages")) {
    const std::string name = stage.at("name");
    const auto measured = totals.stages.find(name);
    if (measured == totals.stages.end()) continue;
    stages[name] = compare(stage.at("seconds"), measured->second.seconds);
  }
  return {{"plan", plan},
          {"ram", compare(plan.at("ram").at("bytes"), double(peak_rss_bytes()))},
          {"device", compare(plan.at("device").at("bytes"), double(totals.peak_device_bytes))},
          {"bytes_read", compare(plan.at("bytes_read"), double(meters.reads.bytes()))},
          {"bytes_written", compare(plan.at("bytes_written"), double(meters.writes.bytes()))},
          {"seconds", compare(plan.at("seconds"), totals.streamed_seconds)},
          {"stages", stages}};
}

json run_report(json head, const std::map<int, json>& blocks, const json& totals) {
  head["blocks"] = json::array();
  for (const auto& [block, report] : blocks) head["blocks"].push_back(report);
  head["totals"] = totals;
  return head;
}

std::string layers_csv(const std::map<int, json>& blocks) {
  std::string csv = "block,name,method,pattern,sparsity\n";
  for (const auto& [block, report] : blocks) {
    for (const json& linear : report.at("linears")) {
      csv +=
          fmt::format("{},{},{},{},{}\n", block, linear.at("name").get<std::string>(),
                      linear.at("method").get<std::string>(),
                      linear.at("pattern").get<std::string>(), linear.at("sparsity").get<double>());
    }
  }
  return csv;
}

// "block 7/30: 50.0 % zeros; held-out loss attention 0.0123 → 0.0045, mlp …; 8.1 s"
std::string block_line(const json& report, int num_blocks) {
  std::string line = fmt::format("block {}/{}", report.at("block").get<int>() + 1, num_blocks);
  double seconds = 0;
  Zeros zeros;
  zeros.add(report);
  if (zeros.matrices > 0) line += fmt::format(": {:.1f} % zeros", 100 * zeros.share());
  for (const json& window : report.at("windows")) {
    line += fmt::format("; {} held-out loss {:.3g} -> {:.3g}", window.at("name").get<std::string>(),
                        number_or_nan(window.at("validation_pruned")),
                        number_or_nan(window.at("validation_reconstructed")));
    if (window.at("kept") == "pruned") line += " (pruned weights kept)";
    seconds += window.at("seconds").get<double>();
  }
  return seconds > 0 ? line + "; " + human_seconds(seconds) : line;
}

}  // namespace coppice
