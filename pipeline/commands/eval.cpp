// coppice eval: perplexity and distance from a reference, or the quality of sentence embeddings,
// out of core.
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "configs/errors.h"  // ConfigError
#include "pipeline/commands/arguments.h"
#include "pipeline/commands/command.h"
#include "pipeline/eval_run.h"
#include "pipeline/similarity_run.h"
#include "pipeline/telemetry/json_text.h"
#include "storage/errors.h"   // IoError
#include "storage/io/file.h"  // write_file

namespace coppice {
namespace {

using nlohmann::json;

constexpr char kPerplexity[] = "perplexity", kStsb[] = "stsb";

/// Of both tasks; a task's own flags are refused by the other.
struct EvalArguments {
  ForwardRunOptions shared;
  std::string task = kPerplexity;
  std::string json_file;
  std::filesystem::path text, data;
  int64_t seqlen = 0, max_windows = 0;
  CLI::Option *text_given = nullptr, *data_given = nullptr, *seqlen_given = nullptr,
              *max_windows_given = nullptr;
};

void add_options(CLI::App& app, EvalArguments& given) {
  app.add_option("model", given.shared.model, "Directory of a Hugging Face checkpoint")->required();
  app.add_option("--task", given.task,
                 "perplexity, of a text; stsb: how an encoder's sentence embeddings agree with "
                 "people's scores")
      ->check(CLI::IsMember({kPerplexity, kStsb}))
      ->capture_default_str();
  given.text_given =
      app.add_option("--text", given.text,
                     "Text of the perplexity: .txt, .jsonl with text, or HDF5 with /input_ids");
  given.data_given =
      app.add_option("--data", given.data,
                     "Pairs of stsb: fields between tabs, the fifth to seventh of which are score, "
                     "sentence, sentence");
  given.seqlen_given =
      app.add_option("--seqlen", given.seqlen,
                     "Tokens a window; each predicts all but its first. stsb: of a "
                     "sentence at most [2048; stsb: 256]");
  given.max_windows_given =
      app.add_option("--max-windows", given.max_windows, "At most that many windows; 0: all")
          ->capture_default_str();
  app.add_option("--against", given.shared.against,
                 "A reference, mostly the dense model: adds KL(reference || model) and how often "
                 "both put the same token first; stsb: the cosine between both models' embeddings");
  app.add_option("--json", given.json_file, "Write the result there; - for stdout");
  app.add_option("--trace", given.shared.trace,
                 "Write a timeline of the run there, as JSON for ui.perfetto.dev");
  app.add_option("--work-dir", given.shared.work,
                 "Tokens and activation cache, removed afterwards "
                 "[.coppice-eval-<pid> in the current directory]");
  app.add_option("--architecture", given.shared.architecture,
                 "A model description beside the known ones");
}

/// Before hours of work whose result could not be written.
void require_directory_of(const std::string& file) {
  const std::filesystem::path directory = std::filesystem::absolute(file).parent_path();
  if (std::filesystem::is_directory(directory)) return;
  throw ConfigError(fmt::format("--json: {}: no such directory; make it, or write elsewhere",
                                directory.string()));
}

void check(const EvalArguments& given) {
  const bool is_stsb = given.task == kStsb;
  const char* const wanted = is_stsb ? "--data" : "--text";
  if ((is_stsb ? given.data_given : given.text_given)->count() == 0) {
    throw ConfigError(fmt::format("{} is required by --task {}", wanted, given.task));
  }
  const std::vector<const CLI::Option*> of_perplexity = {given.text_given, given.max_windows_given};
  const std::vector<const CLI::Option*> of_stsb = {given.data_given};
  for (const CLI::Option* other : is_stsb ? of_perplexity : of_stsb) {
    if (other->count() == 0) continue;
    throw ConfigError(fmt::format("{}: not of --task {}", other->get_name(), given.task));
  }
  if (given.seqlen_given->count() > 0 && given.seqlen < 2) {
    throw ConfigError("--seqlen: at least 2: a window predicts seqlen - 1 tokens");
  }
  if (!given.json_file.empty()) require_directory_of(given.json_file);
  if (given.max_windows < 0) throw ConfigError("--max-windows: 0 (all) or more");
}

/// Of the keys given, those that nothing here would keep. A GPU keeps its own.
void refuse_budgets(const std::vector<std::string>& keys) {
  const std::map<std::string, const char*> budgets = {{"resources.ram_budget", "--ram-budget"},
                                                      {"resources.disk_budget", "--disk-budget"}};
  for (const std::string& key : keys) {
    const auto budget = budgets.find(key);
    if (budget == budgets.end()) continue;
    throw ConfigError(fmt::format(
        "{}: eval keeps no budget of memory or disk: it takes what it needs, and tells the peak",
        budget->second));
  }
}

/// A device or a pipe is written to; a file is replaced.
void write_result(const std::filesystem::path& path, const std::string& text) {
  if (!std::filesystem::exists(path) || std::filesystem::is_regular_file(path)) {
    write_file(path, text);
    return;
  }
  std::ofstream out(path);
  out << text << std::flush;
  if (!out) throw IoError("writing", path.string(), errno);
}

json totals_json(const ForwardRunTotals& totals) {
  return {{"wall_seconds", totals.wall_seconds},
          {"compute_waited_for_io_seconds", totals.waited_seconds},
          {"peak_rss_bytes", totals.peak_rss_bytes},
          {"device", totals.device}};
}

std::string totals_text(const ForwardRunTotals& totals) {
  return fmt::format("{}, {} at the peak", human_seconds(totals.wall_seconds),
                     human_bytes(double(totals.peak_rss_bytes)));
}

/// What is printed, and what is written.
struct Said {
  std::string text;
  json result;
};

Said evaluate_perplexity(const EvalArguments& given) {
  EvalRunOptions options{given.shared, given.text};
  options.max_windows = given.max_windows;
  if (given.seqlen > 0) options.seqlen = given.seqlen;
  const EvalResult result = eval_run(options);
  Said said;
  said.result = totals_json(result.totals);
  said.result.update({{"perplexity", result.quality.perplexity},
                      {"nll", result.quality.nll},
                      {"tokens", result.quality.tokens},
                      {"windows", result.windows},
                      {"seqlen", result.seqlen}});
  said.text = fmt::format("perplexity {:.4f}  ({} tokens in {} windows of {}; {})\n",
                          result.quality.perplexity, result.quality.tokens, result.windows,
                          result.seqlen, totals_text(result.totals));
  const auto& against = result.quality.against;
  if (!against) return said;
  said.result.update({{"reference_perplexity", against->reference_perplexity},
                      {"kl_mean", against->kl_mean},
                      {"kl_p99", against->kl_p99},
                      {"top1_agreement", against->top1_agreement}});
  said.text += fmt::format(
      "against    {}: perplexity {:.4f}, KL {:.4f} nats a token (99th percentile {:.3f}), the "
      "same token first in {:.2f} %\n",
      given.shared.against.string(), against->reference_perplexity, against->kl_mean,
      against->kl_p99, 100 * against->top1_agreement);
  return said;
}

Said evaluate_similarity(const EvalArguments& given) {
  SimilarityRunOptions options{given.shared, given.data};
  if (given.seqlen > 0) options.seqlen = given.seqlen;
  const SimilarityResult result = similarity_run(options);
  Said said;
  said.result = totals_json(result.totals);
  said.result.update({{"spearman", result.agreement.spearman},
                      {"pearson", result.agreement.pearson},
                      {"pairs", result.pairs},
                      {"sentences", 2 * result.pairs},
                      {"tokens", result.tokens}});
  said.text =
      fmt::format("Spearman {:.4f}, Pearson {:.4f}  ({} pairs of sentences, {} tokens; {})\n",
                  result.agreement.spearman, result.agreement.pearson, result.pairs, result.tokens,
                  totals_text(result.totals));
  if (!result.reference) return said;
  said.result.update({{"reference_spearman", result.reference->spearman},
                      {"reference_pearson", result.reference->pearson},
                      {"fidelity", result.fidelity->mean},
                      {"fidelity_min", result.fidelity->least}});
  said.text += fmt::format(
      "against  {}: Spearman {:.4f}, Pearson {:.4f}; cosine of both models' embeddings {:.4f} in "
      "the mean, {:.4f} the least\n",
      given.shared.against.string(), result.reference->spearman, result.reference->pearson,
      result.fidelity->mean, result.fidelity->least);
  return said;
}

}  // namespace

int eval_command(const std::vector<std::string>& arguments, const std::string&) {
  CLI::App app("Quality of a checkpoint on a text, streamed block by block.", "eval");
  EvalArguments given;
  CommonFlags common;
  add_options(app, given);
  add_common_flags(app, common);
  const RecipeFlags flags(app, {"resources"});
  if (!parse_arguments(app, arguments)) return 0;
  check(given);
  if (given.shared.work.empty()) given.shared.work = fmt::format(".coppice-eval-{}", getpid());
  Recipe recipe;
  refuse_budgets(flags.apply(recipe));
  given.shared.resources = recipe.resources;
  given.shared.verbosity = common.verbosity();

  const Said said = given.task == kStsb ? evaluate_similarity(given) : evaluate_perplexity(given);
  if (given.json_file == "-") {
    fmt::print("{}\n", json_text(said.result, 2));
    return 0;
  }
  fmt::print("{}", said.text);
  std::fflush(stdout);  // whatever becomes of the file
  if (!given.json_file.empty()) write_result(given.json_file, json_text(said.result, 2) + "\n");
  return 0;
}

}  // namespace coppice
