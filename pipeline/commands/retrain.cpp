// coppice retrain: a pruned model trained as a whole, its zeros kept.
#include <fmt/format.h>

#include <cmath>
#include <cstdio>

#include "configs/errors.h"  // ConfigError
#include "pipeline/commands/arguments.h"
#include "pipeline/commands/command.h"
#include "pipeline/commands/outcome.h"
#include "pipeline/retrain_run.h"
#include "pipeline/telemetry/json_text.h"

namespace coppice {
namespace {

using nlohmann::json;

const std::vector<std::string> kKeys = {"reconstruct.epochs",
                                        "reconstruct.batch_size",
                                        "reconstruct.lr",
                                        "reconstruct.warmup",
                                        "reconstruct.validation_fraction",
                                        "reconstruct.shuffle",
                                        "reconstruct.train_biases",
                                        "reconstruct.train_norms",
                                        "calibration",
                                        "resources.device",
                                        "resources.compute_dtype",
                                        "resources.threads",
                                        "resources.ram_budget",
                                        "resources.vram_budget"};

void check(const RetrainRunOptions& options) {
  if (options.model.empty())
    throw ConfigError("retrain: --model DIR is missing: the pruned checkpoint");
  if (options.dataset.empty())
    throw ConfigError("retrain: --dataset FILE is missing: text to train on");
  if (options.output.empty())
    throw ConfigError("retrain: --output-dir DIR is missing: where to write");
  if (options.retrain.rank < 1)
    throw ConfigError(fmt::format("--rank: {}: at least 1", options.retrain.rank));
  if (!(options.retrain.alpha > 0) || !std::isfinite(options.retrain.alpha))
    throw ConfigError(fmt::format("--lora-alpha: {}: greater than 0", options.retrain.alpha));
  constexpr int kMostWindows = 1 << 30;
  if (options.first_window < 0 || options.first_window > kMostWindows)
    throw ConfigError(fmt::format("--first-window: {}: from 0 to 2^30", options.first_window));
  if (options.first_window > 0 && options.calibration.sample_windows) {
    throw ConfigError(
        "--first-window: leaves out windows at the dataset's start; with --sample-windows there is "
        "no start");
  }
  if (!(options.save_minutes >= 0))
    throw ConfigError(fmt::format("--save-minutes: {}: 0 or more", options.save_minutes));
  if (options.calibration.nsamples < 2) {
    throw ConfigError(
        fmt::format("--nsamples: {}: at least 2, one window to train on and one to judge by",
                    options.calibration.nsamples));
  }
}

std::string held_out_line(const json& retrain) {
  const double before = retrain.at("validation_pruned"), after = retrain.at("validation_retrained");
  if (retrain.at("kept") == "pruned") {
    return fmt::format("  held out   loss {:.4f}: the pruned weights stay, because {}\n", before,
                       retrain.at("fallback").get<std::string>());
  }
  std::string line = fmt::format(
      "  held out   loss {:.4f} -> {:.4f}, perplexity {:.2f} -> {:.2f}, best after epoch {}\n",
      before, after, std::exp(before), std::exp(after), retrain.at("best_epoch").get<int>());
  const std::string fallback = retrain.at("fallback");
  return fallback.empty() ? line : line + fmt::format("  ended      early, {}\n", fallback);
}

void print_summary(const RetrainRunOptions& options, const json& report) {
  const json& retrain = report.at("retrain");
  const json& totals = report.at("totals");
  const double seconds = retrain.at("seconds");
  const double tokens = retrain.at("tokens_seen");
  const double zeros = retrain.at("zeros");
  fmt::print(
      "\nDone: {}\n{}"
      "  training   loss {:.4f} -> {:.4f} on its first windows; {} steps, {} tokens, rate {:g}\n"
      "  zeros      {} of {} weights ({:.2f} %), every one that was there\n"
      "  time       {}, {} of it training ({:.0f} tokens/s){}\n"
      "  memory     {} at the peak, {} planned\n"
      "  loads in   transformers like the dense model: same size, same speed (zeros are stored)\n"
      "  next       coppice eval {} --text FILE\n",
      options.output.string(), held_out_line(retrain), retrain.at("loss_pruned").get<double>(),
      retrain.at("loss_retrained").get<double>(), retrain.at("steps").get<int64_t>(),
      retrain.at("tokens_seen").get<int64_t>(), retrain.at("lr").get<double>(),
      retrain.at("zeros").get<int64_t>(), retrain.at("weights").get<int64_t>(),
      100 * zeros / retrain.at("weights").get<double>(),
      human_seconds(totals.at("wall_seconds").get<double>()), human_seconds(seconds),
      seconds > 0 ? tokens / seconds : 0.0,
      totals.at("resumed").get<bool>() ? ", continued from an earlier run" : "",
      human_bytes(totals.at("peak_rss_bytes").get<double>()),
      human_bytes(totals.at("planned_ram_bytes").get<double>()), options.output.string());
}

}  // namespace

int retrain_command(const std::vector<std::string>& arguments, const std::string& command_line) {
  CLI::App app(
      "Trains a pruned checkpoint as a whole by low-rank adapters, merged under the mask of its "
      "zeros (MaskLoRA, arXiv:2312.15230). The model and its adapters lie in memory.",
      "retrain");
  RetrainRunOptions options;
  CommonFlags common;
  bool resume = false, as_json = false;
  app.add_option("--model", options.model, "Directory of a pruned Hugging Face checkpoint");
  app.add_option("--dataset", options.dataset,
                 "Text to train on: .txt, .jsonl with text, or HDF5 with /input_ids");
  app.add_option("--output-dir,-o", options.output, "Directory to write; must be absent or empty");
  app.add_option("--work-dir", options.work, "Journal and saved state [<output>.work]");
  app.add_option("--architecture", options.architecture,
                 "A model description beside the known ones");
  app.add_option("--rank", options.retrain.rank, "Of the adapters")->capture_default_str();
  app.add_option("--lora-alpha", options.retrain.alpha, "An adapter weighs lora-alpha / rank")
      ->capture_default_str();
  app.add_option("--first-window", options.first_window,
                 "Windows of the dataset to leave out at its start, say those it was pruned with")
      ->capture_default_str();
  app.add_option("--save-minutes", options.save_minutes,
                 "Between saved states, beside one after every epoch; 0: after every step")
      ->capture_default_str();
  app.add_flag("--resume", resume, "Continue the run in the work directory");
  app.add_flag("--json", as_json, "Print the report to stdout instead of the summary");
  add_common_flags(app, common);
  const RecipeFlags flags(app, kKeys);
  if (!parse_arguments(app, arguments)) return 0;
  Recipe recipe;
  flags.apply(recipe);
  options.calibration = recipe.calibration;
  options.resources = recipe.resources;
  options.retrain.training = recipe.reconstruct;
  options.retrain.training.seed = recipe.calibration.seed;
  options.resume = resume ? Resume::kYes : Resume::kNo;
  options.verbosity = common.verbosity();
  options.command = command_line;
  options.resume_command = resume_command_of(command_line);
  check(options);
  if (options.work.empty()) options.work = work_beside(options.output);

  const RunResult result = retrain_run(options);
  if (const std::optional<int> code =
          exit_code_unless_finished(result.outcome, options.output, options.resume_command)) {
    return *code;
  }
  if (as_json) {
    fmt::print("{}\n", json_text(result.report, 2));
  } else {
    print_summary(options, result.report);
  }
  return 0;
}

}  // namespace coppice
