#include "pipeline/commands/outcome.h"

#include <fmt/format.h>

#include <cstdio>
#include <stdexcept>

namespace coppice {

std::optional<int> exit_code_unless_finished(RunOutcome outcome,
                                             const std::filesystem::path& output,
                                             const std::string& resume_command) {
  switch (outcome) {
    case RunOutcome::kInterrupted:
      fmt::print(stderr, "Stopped; what is done is kept. Continue with\n  {}\n", resume_command);
      return 130;
    case RunOutcome::kAlreadyFinished:
      fmt::print(stderr, "{}: this run is finished already\n", output.string());
      return 0;
    case RunOutcome::kFinished:
      return std::nullopt;
  }
  throw std::logic_error("an outcome without a message");
}

std::string resume_command_of(const std::string& command_line) {
  return command_line.find("--resume") == std::string::npos ? command_line + " --resume"
                                                            : command_line;
}

}  // namespace coppice
