// What `coppice run` and `coppice sweep` have in common: all but what they print at the end.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pipeline/prune_run.h"

namespace coppice {

/// Parses, prunes, says how it ended; returns the exit code. `print_summary` gets the report of a
/// run that has finished, unless --json asked for that itself. Throws the program's errors.
int prune_command(const std::string& command, const std::vector<std::string>& arguments,
                  const std::string& command_line,
                  void (*print_summary)(const PruneRunOptions&, const nlohmann::json& report));

}  // namespace coppice
