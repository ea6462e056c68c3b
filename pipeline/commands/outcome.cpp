#include "pipeline/commands/outcome.h"

#include <fmt/format.h>

#include <cstdio>
#include <stdexcept>

namespace coppice {
namespace {

// Nobody may be listening any more.
void tell(const std::string& text) { std::fputs(text.c_str(), stderr); }

}  // namespace

std::optional<int> exit_code_unless_finished(RunOutcome outcome,
                                             const std::filesystem::path& output,
                                             const std::string& resume_command) {
  switch (outcome) {
    case RunOutcome::kInterrupted:
      tell(fmt::format("Stopped; what is done is kept. Continue with\n  {}\n", resume_command));
      return 130;
    case RunOutcome::kAlreadyFinished:
      tell(fmt::format("{}: this run is finished already\n", output.string()));
      return 0;
    case RunOutcome::kFinished:
      return std::nullopt;
  }
  throw std::logic_error("an outcome without a message");
}

std::filesystem::path work_beside(const std::filesystem::path& output) {
  std::filesystem::path named = output;
  if (!named.has_filename()) named = named.parent_path();  // "OUT/" means OUT.work, not OUT/.work
  if (named.filename() == "." || named.filename() == "..")
    named = std::filesystem::weakly_canonical(named);
  return named.string() + ".work";
}

std::string resume_command_of(const std::string& command_line) {
  return command_line.find("--resume") == std::string::npos ? command_line + " --resume"
                                                            : command_line;
}

}  // namespace coppice
