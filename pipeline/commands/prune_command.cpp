#include "pipeline/commands/prune_command.h"

#include <fmt/format.h>

#include <cstdio>

#include "configs/errors.h"  // ConfigError
#include "pipeline/commands/outcome.h"
#include "pipeline/commands/run_arguments.h"
#include "pipeline/telemetry/json_text.h"

namespace coppice {

int prune_command(const std::string& command, const std::vector<std::string>& arguments,
                  const std::string& command_line,
                  void (*print_summary)(const PruneRunOptions&, const nlohmann::json& report)) {
  const std::optional<RunArguments> given = parse_run_arguments(command, arguments, command_line);
  if (!given) return 0;
  const PruneRunOptions& options = given->options;
  if (options.dataset.empty()) {
    throw ConfigError(command + ": --dataset FILE is missing: calibration text");
  }
  if (options.output.empty()) {
    throw ConfigError(command + ": --output-dir DIR is missing: where to write");
  }
  const RunResult result = prune_run(options);
  if (const std::optional<int> code =
          exit_code_unless_finished(result.outcome, options.output, options.resume_command)) {
    return *code;
  }
  if (given->as_json) {
    fmt::print("{}\n", json_text(result.report, 2));
  } else {
    print_summary(options, result.report);
  }
  return 0;
}

}  // namespace coppice
