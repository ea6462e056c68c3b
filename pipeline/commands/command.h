// The subcommands: each one function from arguments to exit code.
#pragma once

#include <string>
#include <vector>

namespace coppice {

/// `arguments` are those after the subcommand's name; `command_line` is the whole as typed. Results
/// go to stdout, progress and messages to stderr. Throws the program's errors; main makes them exit
/// codes.
int run_command(const std::vector<std::string>& arguments, const std::string& command_line);
int sweep_command(const std::vector<std::string>& arguments, const std::string& command_line);
int plan_command(const std::vector<std::string>& arguments, const std::string& command_line);
int retrain_command(const std::vector<std::string>& arguments, const std::string& command_line);
int eval_command(const std::vector<std::string>& arguments, const std::string& command_line);
int inspect_command(const std::vector<std::string>& arguments, const std::string& command_line);

struct Command {
  const char* name;
  const char* help;
  int (*run)(const std::vector<std::string>&, const std::string&);
};
const std::vector<Command>& commands();

}  // namespace coppice
