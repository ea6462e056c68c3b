// Where a run works, and how a command ends that made nothing new.
#pragma once

#include <filesystem>
#include <optional>

#include "pipeline/prune_run.h"

namespace coppice {

/// Says on stderr how an interrupted run is continued, or that there is nothing left to do; returns
/// the exit code. Nothing for a run that has finished.
std::optional<int> exit_code_unless_finished(RunOutcome outcome,
                                             const std::filesystem::path& output,
                                             const std::string& resume_command);

/// Where a run works unless told: beside its output, "OUT.work".
std::filesystem::path work_beside(const std::filesystem::path& output);

/// The command as typed, with --resume.
std::string resume_command_of(const std::string& command_line);

}  // namespace coppice
