// coppice sweep: several recipes in one dense pass.
#include <fmt/format.h>

#include <cstdio>

#include "pipeline/commands/command.h"
#include "pipeline/commands/prune_command.h"
#include "pipeline/telemetry/progress.h"  // human_seconds
#include "pipeline/telemetry/sweep_table.h"

namespace coppice {
namespace {

using nlohmann::json;

void print_summary(const PruneRunOptions& options, const json& report) {
  const json& totals = report.at("totals");
  fmt::print("\n{}\nDone: {} recipes in {}, {} at the peak{}\n  table      {}\n",
             sweep_text(report), options.recipes.size(),
             human_seconds(totals.at("wall_seconds").get<double>()),
             human_bytes(totals.at("peak_rss_bytes").get<double>()),
             totals.at("resumed").get<bool>() ? ", continued from an earlier one" : "",
             (options.output / "sweep.csv").string());
  if (report.at("best").is_null()) {
    fmt::print("  best       none: every model overflows on the held-out windows\n");
    return;
  }
  const std::filesystem::path best = options.output / report.at("best").get<std::string>();
  if (options.sweep->writes_checkpoints) {
    fmt::print("  best       {}\n  next       coppice eval {} --text FILE\n", best.string(),
               best.string());
  } else {
    fmt::print("  best       coppice run --model {} --dataset {} --recipe {} --output-dir DIR\n",
               options.model.string(), options.dataset.string(), (best / "recipe.yaml").string());
  }
}

}  // namespace

int sweep_command(const std::vector<std::string>& arguments, const std::string& command_line) {
  return prune_command("sweep", arguments, command_line, print_summary);
}

}  // namespace coppice
