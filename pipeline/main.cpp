// Parse, dispatch, exit code.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/resource.h>
#include <tbb/global_control.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "configs/errors.h"  // ConfigError
#include "configs/recipe.h"  // nearest
#include "pipeline/commands/command.h"
#include "pipeline/errors.h"
#include "pipeline/heap.h"
#include "pipeline/openmp.h"
#include "storage/errors.h"  // IoError

namespace {

std::string quoted(const std::string& word) {
  const bool plain =
      !word.empty() && word.find_first_of(" \t\n'\"\\$`*?[](){}<>|&;#~!") == std::string::npos;
  if (plain) return word;
  std::string out = "'";
  for (const char c : word) out += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return out + "'";
}

void print_help() {
  fmt::print(
      "coppice {}: prunes and reconstructs language models larger than memory\n\n"
      "usage: coppice COMMAND [--help]\n\n",
      COPPICE_VERSION);
  for (const coppice::Command& command : coppice::commands()) {
    fmt::print("  {:<9}{}\n", command.name, command.help);
  }
}

int dispatch(const std::vector<std::string>& words) {
  if (words.size() < 2 || words[1] == "--help" || words[1] == "-h" || words[1] == "help") {
    print_help();
    return words.size() < 2 ? 2 : 0;
  }
  if (words[1] == "--version") {
    fmt::print("{}\n", COPPICE_VERSION);
    return 0;
  }
  std::string command_line;
  for (const std::string& word : words) {
    if (!command_line.empty()) command_line += ' ';
    command_line += quoted(word);
  }
  std::vector<std::string> names;
  for (const coppice::Command& command : coppice::commands()) {
    if (words[1] == command.name)
      return command.run({words.begin() + 2, words.end()}, command_line);
    names.emplace_back(command.name);
  }
  throw coppice::ConfigError(fmt::format("{}: unknown command; did you mean {}? (there are: {})",
                                         words[1], coppice::nearest(words[1], names),
                                         fmt::join(names, ", ")));
}

// A reader of our messages that goes away must not end a night's work, and a model of a thousand
// shards has them all open.
void prepare_process() {
  std::signal(SIGPIPE, SIG_IGN);
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) != 0) return;
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
}

// What was printed may still lie in a buffer.
void require_printed() {
  if (std::fflush(stdout) != 0) throw coppice::IoError("write", "standard output", errno);
}

}  // namespace

int main(int argc, char** argv) {
  prepare_process();
  coppice::wait_without_spinning(argv);
  coppice::prefer_huge_pages();
  tbb::task_scheduler_handle workers{tbb::attach{}};
  int code = 0;
  try {
    code = dispatch({argv, argv + argc});
    require_printed();
  } catch (const std::exception& error) {
    std::fputs(fmt::format("coppice: {}\n", coppice::error_chain(error)).c_str(), stderr);
    code = coppice::exit_code(error);
  }
  // One that wakes while the process is torn down would crash a finished run.
  tbb::finalize(workers, std::nothrow);
  return code;
}
