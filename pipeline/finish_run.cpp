#include "pipeline/finish_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "pipeline/plan/plan_text.h"
#include "pipeline/space_guard.h"
#include "pipeline/telemetry/json_text.h"
#include "pipeline/telemetry/model_card.h"
#include "pipeline/telemetry/process.h"
#include "pipeline/telemetry/sweep_table.h"
#include "pipeline/unit_saliency_pass.h"
#include "storage/io/file.h"  // write_file

namespace coppice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

constexpr const char* kRecipeFile = "recipe.yaml";
constexpr const char* kLayersFile = "coppice_layers.csv";
constexpr const char* kReportFile = "coppice_report.json";
constexpr const char* kCardFile = "README.md";
constexpr const char* kSweepTableFile = "sweep.csv";
constexpr const char* kSweepReportFile = "sweep_report.json";

json report_head(const StoredRun& run, size_t recipe) {
  const auto& [context, options, outputs, recipes, plan_inputs, measured] = run;
  Machine& machine = context.machine;
  const TokenWindows& tokens = context.tokens;
  const double product_rate = plan_inputs.rates.mlp_product_flop;
  json head = {{"version", COPPICE_VERSION},
               {"command", options.command},
               {"model", model_report(context.model)},
               {"machine",
                {{"device", machine.device_names()},
                 {"description", machine.device().description()},
                 {"compute_dtype", c10::toString(context.compute)},
                 {"product_flop_per_second", product_rate > 0 ? json(product_rate) : json()},
                 {"io_engine", machine.engine().name()}}},
               {"recipe", recipe_json(options.recipes[recipe].recipe)},
               {"calibration",
                {{"nsamples", tokens.num_sequences()},
                 {"seqlen", tokens.seqlen},
                 {"tokens", tokens.num_tokens()},
                 {"dataset_sha256", tokens.dataset_sha256}}}};
  json found = recipes[recipe].found;
  if (!options.measured.empty() && !options.measured[recipe].is_null()) {
    found["allocation"] = options.measured[recipe];
  }
  if (!found.is_null()) head["survey"] = found;
  if (options.sweep) {
    head["sweep"] = {{"name", outputs[recipe].name},
                     {"recipes", outputs.size()},
                     {"held_out_loss", context.state.judged().at("losses").at(recipe)}};
  }
  return head;
}

// Everything but the index first: the directory loads the moment it is complete.
json complete(const StoredRun& run, size_t recipe, const json& totals) {
  const PassContext& context = run.context;
  const RecipeOutput& output = run.outputs[recipe];
  const Recipe& asked = run.options.recipes[recipe].recipe;
  const auto& blocks = context.state.block_reports(recipe);
  json report = run_report(report_head(run, recipe), blocks, totals);
  report["plan"] = plan_against_run(plan_json(context.plan, run.plan_inputs),
                                    context.machine.meters(), run.measured);
  const fs::path& directory = output.directory.path();
  context.space.with_room(directory, 0, [&] { make_directories(directory); });
  if (output.is_written) {
    context.space.with_room(directory, output.directory.side_bytes(),
                            [&] { output.directory.copy_side_files(); });
  }
  context.space.with_room(directory, 0, [&] {
    write_file(directory / kRecipeFile, write_recipe(asked));
    write_file(directory / kLayersFile, layers_csv(blocks));
    write_file(directory / kReportFile, json_text(report, 2) + "\n");
    if (!output.is_written) return;
    const fs::path base_card = run.options.model / "README.md";
    write_file(directory / kCardFile,
               model_card(report, fs::exists(base_card) ? read_file(base_card) : ""));
    if (asked.prune.export_masks) output.directory.write_masks_index();
    output.directory.write_index();
  });
  return report;
}

json write_sweep(const StoredRun& run, const std::vector<SweepRow>& rows, const json& totals) {
  json table = sweep_table(run.options.sweep->keys, rows, run.context.state.judged());
  table["totals"] = totals;
  run.context.space.with_room(run.options.output, 0, [&] {
    write_file(run.options.output / kSweepTableFile, sweep_csv(table));
    write_file(run.options.output / kSweepReportFile, json_text(table, 2) + "\n");
  });
  return table;
}

void note_a_budget_that_was_exceeded(const StoredRun& run) {
  const PlannedResource& ram = run.context.plan.ram;
  const uint64_t peak = peak_rss_bytes();
  if (!run.plan_inputs.is_ram_limit_given || peak <= ram.limit) return;
  run.context.progress.note(fmt::format("--ram-budget was exceeded: {} of {}; the plan counted {}",
                                        human_bytes(double(peak)), human_bytes(double(ram.limit)),
                                        human_bytes(double(ram.bytes()))));
}

}  // namespace

json finish_run(const StoredRun& run) {
  const json totals = totals_report(run.context.machine.meters(), run.measured);
  json result;
  std::vector<SweepRow> rows;
  rows.reserve(run.outputs.size());
  for (size_t recipe = 0; recipe < run.outputs.size(); ++recipe) {
    result = complete(run, recipe, totals);
    rows.push_back(
        {run.outputs[recipe].name, run.options.recipes[recipe].varied, result.at("blocks")});
  }
  if (run.options.sweep) result = write_sweep(run, rows, totals);
  run.context.space.with_room(run.options.work, 0, [&] {
    write_file(run.options.work / kReportFile, json_text(result, 2) + "\n");
    run.context.state.record_finished(run.outputs.front().directory.side_file_names());
  });
  remove_scratch(run.options.work);
  note_a_budget_that_was_exceeded(run);  // reports have been made, too
  return result;
}

bool has_finished_files(const PruneRunOptions& options, const std::vector<RecipeOutput>& outputs,
                        const std::vector<std::string>& side_files) {
  std::vector<fs::path> files = {options.work / kReportFile};
  for (size_t recipe = 0; recipe < outputs.size(); ++recipe) {
    const OutputDirectory& directory = outputs[recipe].directory;
    std::vector<std::string> names = {kRecipeFile, kLayersFile, kReportFile};
    if (outputs[recipe].is_written) {
      if (!directory.opens(options.recipes[recipe].recipe.prune.export_masks)) return false;
      names.emplace_back(kCardFile);
      names.insert(names.end(), side_files.begin(), side_files.end());
    }
    for (const std::string& name : names) files.push_back(directory.path() / name);
  }
  if (options.sweep) {
    files.push_back(options.output / kSweepTableFile);
    files.push_back(options.output / kSweepReportFile);
  }
  return std::all_of(files.begin(), files.end(),
                     [](const fs::path& file) { return fs::exists(file); });
}

void remove_scratch(const fs::path& work) {
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(work, ignored)) {
    const bool is_held_out = entry.path().filename().string().starts_with("held_out.");
    if (entry.path().extension() == ".h5" || is_held_out) fs::remove(entry.path(), ignored);
  }
  fs::remove(unit_saliency_path(work), ignored);
  fs::remove_all(work / "tokens", ignored);
}

}  // namespace coppice
