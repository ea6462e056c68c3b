// One run: a dense checkpoint goes in, a pruned and reconstructed one comes out, block by block.
#pragma once

#include <filesystem>
#include <string>

#include "configs/recipe.h"
#include "pipeline/run_state.h"
#include "pipeline/telemetry/progress.h"

namespace coppice {

struct PruneRunOptions {
  std::filesystem::path model;
  std::filesystem::path dataset;
  std::filesystem::path output;
  std::filesystem::path work;          // journal, cache, tokens
  std::filesystem::path architecture;  // an extra description; may be empty
  std::filesystem::path trace;         // a timeline to write; may be empty
  Recipe recipe;
  Resume resume = Resume::kNo;
  Verbosity verbosity = Verbosity::kNormal;
  std::string command;  // as typed, for the report
  std::string resume_command;
};

enum class RunOutcome { kFinished, kAlreadyFinished, kInterrupted };

struct RunResult {
  RunOutcome outcome = RunOutcome::kFinished;
  nlohmann::json report;  // empty unless finished
};

/// Runs to the end, or until `SIGTERM`/`SIGINT`: then the block at work is finished and stored.
/// Throws any of the program's errors; nothing that looks finished is left behind.
RunResult prune_run(const PruneRunOptions& options);

}  // namespace coppice
