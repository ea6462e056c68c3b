// coppice run: prune and reconstruct.
#include <fmt/format.h>

#include <cstdio>

#include "configs/errors.h"  // ConfigError
#include "pipeline/commands/arguments.h"
#include "pipeline/commands/command.h"
#include "pipeline/prune_run.h"

namespace coppice {
namespace {

using nlohmann::json;

std::string loss_lines(const json& report) {
  struct Sum {
    double pruned = 0, reconstructed = 0;
    int windows = 0, kept = 0;
  };
  std::map<std::string, Sum> sums;
  for (const json& block : report.at("blocks")) {
    for (const json& window : block.at("windows")) {
      Sum& sum = sums[window.at("name").get<std::string>()];
      sum.pruned += window.at("validation_pruned").get<double>();
      sum.reconstructed += window.at("validation_reconstructed").get<double>();
      ++sum.windows;
      sum.kept += !window.at("fallback").get<std::string>().empty();
    }
  }
  std::string lines;
  for (const auto& [name, sum] : sums) {
    lines += fmt::format("  {:<10} held-out error {:.1f} % of the pruned model's, over {} windows",
                         name, 100 * sum.reconstructed / sum.pruned, sum.windows);
    if (sum.kept > 0) lines += fmt::format(" ({} kept their pruned weights)", sum.kept);
    lines += "\n";
  }
  return lines.empty() ? "  pruned only, no reconstruction was asked for\n" : lines;
}

void print_summary(const PruneRunOptions& options, const json& report) {
  const json& totals = report.at("totals");
  const double wall = totals.at("wall_seconds");
  const double waited = totals.at("compute_waited_for_io_seconds");
  const json& cache = totals.at("activation_cache");
  const double stored = cache.at("stored_bytes").get<double>();
  fmt::print(
      "\nDone: {}\n{}"
      "  time       {} ({:.1f} % of it waited for reads and writes){}\n"
      "  memory     {} at the peak\n"
      "  disk       {} read, {} written; activations compressed {:.2f} to 1\n"
      "  loads in   transformers like the dense model: same size, same speed (zeros are stored)\n"
      "  next       coppice eval {} --text FILE\n",
      options.output.string(), loss_lines(report), human_seconds(wall), 100 * waited / wall,
      totals.at("resumed").get<bool>() ? ", continued from an earlier run" : "",
      human_bytes(totals.at("peak_rss_bytes").get<double>()),
      human_bytes(totals.at("bytes_read").get<double>()),
      human_bytes(totals.at("bytes_written").get<double>()),
      stored > 0 ? cache.at("raw_bytes").get<double>() / stored : 1.0, options.output.string());
}

std::string resume_command_of(const std::string& command_line) {
  return command_line.find("--resume") == std::string::npos ? command_line + " --resume"
                                                            : command_line;
}

}  // namespace

int run_command(const std::vector<std::string>& arguments, const std::string& command_line) {
  CLI::App app("Prunes a checkpoint and reconstructs it window by window.", "run");
  PruneRunOptions options;
  CommonFlags common;
  std::string recipe_file;
  bool resume = false, as_json = false;
  app.add_option("--model", options.model, "Directory of a Hugging Face checkpoint");
  app.add_option("--dataset", options.dataset,
                 "Calibration: .txt, .jsonl with text, or HDF5 with /input_ids");
  app.add_option("--output-dir,-o", options.output, "Directory to write; must be absent or empty");
  app.add_option("--work-dir", options.work, "Journal and activation cache [<output>.work]");
  app.add_option("--recipe", recipe_file, "YAML with any of the keys below; flags win over it");
  app.add_option("--architecture", options.architecture,
                 "A model description beside the known ones");
  app.add_flag("--resume", resume, "Continue the run in the work directory");
  app.add_flag("--measure-products", options.measure_products,
               "Time a plain matrix product first, so that the report can compare");
  app.add_flag("--json", as_json, "Print the report to stdout instead of the summary");
  add_common_flags(app, common);
  const RecipeFlags flags(app);
  if (!parse_arguments(app, arguments)) return 0;
  if (options.model.empty())
    throw ConfigError("run: --model DIR is missing: the checkpoint to prune");
  if (options.dataset.empty())
    throw ConfigError("run: --dataset FILE is missing: calibration text");
  if (options.output.empty()) throw ConfigError("run: --output-dir DIR is missing: where to write");
  if (options.work.empty()) options.work = options.output.string() + ".work";

  std::vector<std::string> set;
  if (!recipe_file.empty()) set = read_recipe(recipe_file, options.recipe);
  const std::vector<std::string> by_flag = flags.apply(options.recipe);
  set.insert(set.end(), by_flag.begin(), by_flag.end());
  check_recipe(options.recipe, set);
  options.recipe.reconstruct.seed = options.recipe.calibration.seed;
  options.resume = resume ? Resume::kYes : Resume::kNo;
  options.verbosity = common.verbosity();
  options.command = command_line;
  options.resume_command = resume_command_of(command_line);

  const RunResult result = prune_run(options);
  switch (result.outcome) {
    case RunOutcome::kInterrupted:
      fmt::print(stderr, "Stopped; what is done is kept. Continue with\n  {}\n",
                 options.resume_command);
      return 130;
    case RunOutcome::kAlreadyFinished:
      fmt::print(stderr, "{}: this run is finished already\n", options.output.string());
      return 0;
    case RunOutcome::kFinished:
      break;
  }
  if (as_json) {
    fmt::print("{}\n", result.report.dump(2));
  } else {
    print_summary(options, result.report);
  }
  return 0;
}

}  // namespace coppice
