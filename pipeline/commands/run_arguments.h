// The arguments that `run`, `sweep` and `plan` share.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "pipeline/prune_run_options.h"

namespace coppice {

struct RunArguments {
  PruneRunOptions options;  // the recipes checked, the work directory resolved
  bool as_json = false;
};

/// Nothing if help was asked for (and printed). Data set and output may be left out: whether that
/// will do is the command's to say. Throws ConfigError, IoError.
std::optional<RunArguments> parse_run_arguments(const std::string& command,
                                                const std::vector<std::string>& arguments,
                                                const std::string& command_line);

}  // namespace coppice
