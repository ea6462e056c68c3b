// coppice run: prune and reconstruct.
#include <fmt/format.h>

#include <cstdio>
#include <map>

#include "pipeline/commands/command.h"
#include "pipeline/commands/prune_command.h"
#include "pipeline/telemetry/json_text.h"
#include "pipeline/telemetry/progress.h"  // human_bytes, human_seconds

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
      sum.kept += window.at("kept") == "pruned";
      if (window.at("validation_pruned").is_null()) continue;  // it overflowed, and was kept
      sum.pruned += window.at("validation_pruned").get<double>();
      sum.reconstructed += number_or_nan(window.at("validation_reconstructed"));
      ++sum.windows;
    }
  }
  std::string lines;
  for (const auto& [name, sum] : sums) {
    lines +=
        sum.windows == 0
            ? fmt::format("  {:<10} held-out error not finite", name)
            : fmt::format("  {:<10} held-out error {:.1f} % of the pruned model's, over {} windows",
                          name, 100 * sum.reconstructed / sum.pruned, sum.windows);
    if (sum.kept > 0) lines += fmt::format(" ({} kept their pruned weights)", sum.kept);
    lines += "\n";
  }
  return lines.empty() ? "  pruned only, no reconstruction was asked for\n" : lines;
}

// Matrices that were not pruned by the method that was asked for: how many, and why the first.
std::string fallback_line(const json& report) {
  int count = 0;
  std::string first;
  for (const json& block : report.at("blocks")) {
    for (const json& linear : block.at("linears")) {
      const std::string why = linear.at("fallback");
      if (why.empty() || count++ > 0) continue;
      first = fmt::format("{} by {}, because {}", linear.at("name").get<std::string>(),
                          linear.at("method").get<std::string>(), why);
    }
  }
  return count == 0 ? "" : fmt::format("  not as asked: {} matrices, as {}\n", count, first);
}

// What was foreseen, where it was.
std::string plan_line(const json& plan) {
  std::string line =
      fmt::format("  planned    {}", human_bytes(plan.at("ram").at("planned").get<double>()));
  const json& seconds = plan.at("seconds").at("planned");
  if (!seconds.is_null()) line += fmt::format(" and {}", human_seconds(seconds.get<double>()));
  return line + "\n";
}

void print_summary(const PruneRunOptions& options, const json& report) {
  const json& totals = report.at("totals");
  const double wall = totals.at("wall_seconds");
  const double waited = totals.at("compute_waited_for_io_seconds");
  const double on_gpu = totals.at("peak_device_bytes");
  const json& cache = totals.at("activation_cache");
  const double stored = cache.at("stored_bytes").get<double>();
  fmt::print(
      "\nDone: {}\n{}"
      "  time       {} ({:.1f} % of it waited for reads and writes){}\n"
      "  memory     {} at the peak{}\n"
      "{}"
      "  disk       {} read, {} written; activations compressed {:.2f} to 1\n"
      "  loads in   transformers like the dense model: {}\n"
      "  next       coppice eval {} --text FILE\n",
      options.output.string(), loss_lines(report) + fallback_line(report), human_seconds(wall),
      100 * waited / wall,
      totals.at("resumed").get<bool>() ? ", continued from an earlier run" : "",
      human_bytes(totals.at("peak_rss_bytes").get<double>()),
      on_gpu > 0 ? ", " + human_bytes(on_gpu) + " of the GPU's" : "", plan_line(report.at("plan")),
      human_bytes(totals.at("bytes_read").get<double>()),
      human_bytes(totals.at("bytes_written").get<double>()),
      stored > 0 ? cache.at("raw_bytes").get<double>() / stored : 1.0,
      options.shared().prune.is_sliced ? "smaller, and faster by what was cut out"
                                       : "same size, same speed (zeros are stored)",
      options.output.string());
}

}  // namespace

int run_command(const std::vector<std::string>& arguments, const std::string& command_line) {
  return prune_command("run", arguments, command_line, print_summary);
}

}  // namespace coppice
