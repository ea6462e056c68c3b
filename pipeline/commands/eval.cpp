// coppice eval: perplexity and distance from a reference, out of core.
#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "configs/errors.h"  // ConfigError
#include "pipeline/commands/arguments.h"
#include "pipeline/commands/command.h"
#include "pipeline/eval_run.h"
#include "storage/io/file.h"  // write_file

namespace coppice {

int eval_command(const std::vector<std::string>& arguments, const std::string&) {
  CLI::App app("Perplexity of a checkpoint on a text, streamed block by block.", "eval");
  EvalRunOptions options;
  CommonFlags common;
  std::string json_file;
  app.add_option("model", options.model, "Directory of a Hugging Face checkpoint")->required();
  app.add_option("--text", options.text, "Text: .txt, .jsonl with text, or HDF5 with /input_ids")
      ->required();
  app.add_option("--seqlen", options.seqlen, "Tokens a window; each predicts all but its first")
      ->capture_default_str();
  app.add_option("--max-windows", options.max_windows, "At most that many windows; 0: all")
      ->capture_default_str();
  app.add_option("--against", options.against,
                 "A reference, mostly the dense model: adds KL(reference || model) and how often "
                 "both put the same token first");
  app.add_option("--json", json_file, "Write the result there; - for stdout");
  app.add_option("--trace", options.trace,
                 "Write a timeline of the run there, as JSON for ui.perfetto.dev");
  app.add_option("--work-dir", options.work,
                 "Tokens and activation cache, removed afterwards "
                 "[.coppice-eval-<pid> in the current directory]");
  app.add_option("--architecture", options.architecture,
                 "A model description beside the known ones");
  add_common_flags(app, common);
  const RecipeFlags flags(app, {"resources"});
  if (!parse_arguments(app, arguments)) return 0;
  if (options.seqlen < 2)
    throw ConfigError("--seqlen: at least 2: a window predicts seqlen - 1 tokens");
  if (options.max_windows < 0) throw ConfigError("--max-windows: 0 (all) or more");
  if (options.work.empty()) options.work = fmt::format(".coppice-eval-{}", getpid());
  Recipe recipe;
  flags.apply(recipe);
  options.resources = recipe.resources;
  options.verbosity = common.verbosity();

  const EvalResult result = eval_run(options);
  nlohmann::json json = {{"perplexity", result.quality.perplexity},
                         {"nll", result.quality.nll},
                         {"tokens", result.quality.tokens},
                         {"windows", result.windows},
                         {"seqlen", result.seqlen},
                         {"wall_seconds", result.wall_seconds},
                         {"compute_waited_for_io_seconds", result.waited_seconds},
                         {"peak_rss_bytes", result.peak_rss_bytes},
                         {"device", result.device}};
  if (const auto& against = result.quality.against) {
    json["reference_perplexity"] = against->reference_perplexity;
    json["kl_mean"] = against->kl_mean;
    json["kl_p99"] = against->kl_p99;
    json["top1_agreement"] = against->top1_agreement;
  }
  if (json_file == "-") {
    fmt::print("{}\n", json.dump(2));
    return 0;
  }
  if (!json_file.empty()) write_file(json_file, json.dump(2) + "\n");
  fmt::print("perplexity {:.4f}  ({} tokens in {} windows of {}; {}, {} at the peak)\n",
             result.quality.perplexity, result.quality.tokens, result.windows, result.seqlen,
             human_seconds(result.wall_seconds), human_bytes(double(result.peak_rss_bytes)));
  if (const auto& against = result.quality.against) {
    fmt::print(
        "against    {}: perplexity {:.4f}, KL {:.4f} nats a token (99th percentile {:.3f}), the "
        "same token first in {:.2f} %\n",
        options.against.string(), against->reference_perplexity, against->kl_mean, against->kl_p99,
        100 * against->top1_agreement);
  }
  return 0;
}

}  // namespace coppice
