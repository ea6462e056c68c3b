#include "pipeline/commands/run_arguments.h"

#include "configs/errors.h"  // ConfigError
#include "pipeline/commands/arguments.h"
#include "pipeline/commands/outcome.h"  // resume_command_of

namespace coppice {
std::optional<RunArguments> parse_run_arguments(const std::string& command,
                                                const std::vector<std::string>& arguments,
                                                const std::string& command_line) {
  const bool is_run = command == "run";
  CLI::App app(is_run ? "Prunes a checkpoint and reconstructs it window by window."
                      : "Tells what a run with the same arguments would take, and what bounds it.",
               command);
  RunArguments given;
  PruneRunOptions& options = given.options;
  CommonFlags common;
  std::string recipe_file;
  bool resume = false;
  app.add_option("--model", options.model, "Directory of a Hugging Face checkpoint");
  app.add_option("--dataset", options.dataset,
                 "Calibration: .txt, .jsonl with text, or HDF5 with /input_ids");
  app.add_option("--output-dir,-o", options.output, "Directory to write; must be absent or empty");
  app.add_option("--work-dir", options.work, "Journal and activation cache [<output>.work]");
  app.add_option("--recipe", recipe_file, "YAML with any of the keys below; flags win over it");
  app.add_option("--architecture", options.architecture,
                 "A model description beside the known ones");
  app.add_flag("--resume", resume, "Continue the run in the work directory");
  if (is_run) {
    app.add_option("--trace", options.trace,
                   "Write a timeline of the run there, as JSON for ui.perfetto.dev");
  }
  app.add_flag(
      "--json", given.as_json,
      is_run ? "Print the report to stdout instead of the summary" : "Print the plan as JSON");
  add_common_flags(app, common);
  const RecipeFlags flags(app);
  if (!parse_arguments(app, arguments)) return std::nullopt;
  if (options.model.empty())
    throw ConfigError(command + ": --model DIR is missing: the checkpoint to prune");
  if (options.work.empty() && !options.output.empty())
    options.work = options.output.string() + ".work";

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
  return given;
}

}  // namespace coppice
