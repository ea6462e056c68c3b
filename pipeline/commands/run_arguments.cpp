#include "pipeline/commands/run_arguments.h"

#include <algorithm>

#include "configs/errors.h"  // ConfigError
#include "pipeline/commands/arguments.h"
#include "pipeline/commands/outcome.h"  // resume_command_of, work_beside
#include "pipeline/sweep_grid.h"

namespace coppice {
namespace {

/// Each file, with the flags over it; without files the flags alone.
std::vector<BaseRecipe> read_bases(const std::vector<std::string>& files,
                                   const RecipeFlags& flags) {
  std::vector<BaseRecipe> bases(std::max<size_t>(1, files.size()));
  for (size_t i = 0; i < bases.size(); ++i) {
    BaseRecipe& base = bases[i];
    if (!files.empty()) base.keys_set = read_recipe(files[i], base.recipe);
    if (files.size() > 1) base.name = std::filesystem::path(files[i]).stem().string();
    const std::vector<std::string> by_flag = flags.apply(base.recipe);
    base.keys_set.insert(base.keys_set.end(), by_flag.begin(), by_flag.end());
  }
  return bases;
}

}  // namespace

std::optional<RunArguments> parse_run_arguments(const std::string& command,
                                                const std::vector<std::string>& arguments,
                                                const std::string& command_line) {
  const bool is_plan = command == "plan", is_run = command == "run";
  CLI::App app(is_plan  ? "Tells what a run or a sweep with the same arguments would take."
               : is_run ? "Prunes a checkpoint and reconstructs it window by window."
                        : "Runs several recipes in one dense pass and tells which is best by "
                          "held-out calibration text.",
               command);
  RunArguments given;
  PruneRunOptions& options = given.options;
  CommonFlags common;
  std::vector<std::string> recipe_files, vary;
  std::string outputs = "all";
  bool resume = false;
  app.add_option("--model", options.model, "Directory of a Hugging Face checkpoint");
  app.add_option("--dataset", options.dataset,
                 "Calibration: .txt, .jsonl with text, or HDF5 with /input_ids");
  app.add_option("--output-dir,-o", options.output, "Directory to write; must be absent or empty");
  app.add_option("--work-dir", options.work, "Journal and activation cache [<output>.work]");
  CLI::Option* recipe_option = app.add_option(
      "--recipe", recipe_files,
      std::string("YAML with any of the keys below; flags win over it") +
          (is_run ? "" : "; of a sweep, several times: each with every combination of --vary"));
  recipe_option->expected(1);
  if (is_run) {
    recipe_option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  } else {
    recipe_option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    app.add_option("--vary", vary, "Of a sweep: KEY=VALUE,VALUE (repeated: every combination)")
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    app.add_option("--outputs", outputs,
                   "Of a sweep: all (a checkpoint of every recipe below the output directory) or "
                   "none (only the table and reports) [all]")
        ->check(CLI::IsMember({"all", "none"}));
  }
  app.add_option("--architecture", options.architecture,
                 "A model description beside the known ones");
  app.add_flag("--resume", resume, "Continue the run in the work directory");
  if (!is_plan) {
    app.add_option("--trace", options.trace,
                   "Write a timeline of the run there, as JSON for ui.perfetto.dev");
  }
  app.add_flag(
      "--json", given.as_json,
      is_plan ? "Print the plan as JSON" : "Print the report to stdout instead of the summary");
  add_common_flags(app, common);
  const RecipeFlags flags(app);
  if (!parse_arguments(app, arguments)) return std::nullopt;
  if (options.model.empty())
    throw ConfigError(command + ": --model DIR is missing: the checkpoint to prune");
  if (options.work.empty() && !options.output.empty()) options.work = work_beside(options.output);

  std::vector<BaseRecipe> bases = read_bases(recipe_files, flags);
  const bool is_sweep = command == "sweep" || !vary.empty() || bases.size() > 1;
  if (is_sweep) {
    SweepGrid grid = sweep_grid(bases, vary);
    options.recipes = std::move(grid.recipes);
    options.sweep = SweepOptions{std::move(grid.keys), outputs == "all"};
  } else {
    check_recipe(bases.front().recipe, bases.front().keys_set);
    options.recipes = {{"", bases.front().recipe, {}}};
  }
  options.resume = resume ? Resume::kYes : Resume::kNo;
  options.verbosity = common.verbosity();
  options.command = command_line;
  options.resume_command = resume_command_of(command_line);
  return given;
}

}  // namespace coppice
