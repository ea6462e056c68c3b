#include "pipeline/run_checks.h"

#include <fmt/format.h>

#include "configs/errors.h"  // ConfigError
#include "stages/prune.h"    // is_target

namespace coppice {

namespace fs = std::filesystem;

void check_against_model(const Recipe& recipe, const Architecture& architecture,
                         const TokenWindows& tokens) {
  const SparsityPattern& pattern = recipe.prune.pattern;
  bool any_target = false;
  for (const LinearSpec& linear : architecture.linears) {
    const std::string name = in_block(architecture, 0, linear.name);
    const bool target = is_target(recipe.prune, name);
    any_target = any_target || target;
    if (target && !pattern.is_unstructured() && linear.in % pattern.group_size != 0) {
      throw ConfigError(fmt::format(
          "prune.sparsity_type: {}:{}: {} has {} inputs, which {} does not divide; ignore it with "
          "prune.ignore or choose another M",
          pattern.num_kept, pattern.group_size, name, linear.in, pattern.group_size));
    }
  }
  for (int block = 1; block < architecture.num_blocks && !any_target; ++block) {
    for (const LinearSpec& linear : architecture.linears) {
      any_target =
          any_target || is_target(recipe.prune, in_block(architecture, block, linear.name));
    }
  }
  if (!any_target) {
    throw ConfigError("prune.targets and prune.ignore leave no linear of the model to prune");
  }
  if (tokens.seqlen > architecture.max_positions && architecture.max_positions > 0) {
    throw ConfigError(fmt::format("calibration.seqlen: {}: the model has {} positions",
                                  tokens.seqlen, architecture.max_positions));
  }
}

void check_output_directory(const fs::path& output, const fs::path& work) {
  if (fs::exists(work / "journal.bin")) return;
  if (!fs::exists(output) || fs::is_empty(output)) return;
  throw ConfigError(
      fmt::format("--output-dir: {}: not empty, and not of a run to be continued; choose "
                  "another directory or remove it",
                  output.string()));
}

void remove_unfinished(const fs::path& directory) {
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() == ".tmp") fs::remove(entry.path());
  }
}

}  // namespace coppice
