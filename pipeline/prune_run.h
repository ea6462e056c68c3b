// One run: a dense checkpoint goes in, a pruned and reconstructed one comes out, block by block; or
// one for each of several recipes, whose dense pass is the same (a sweep).
#pragma once

#include <nlohmann/json.hpp>

#include "pipeline/prune_run_options.h"

namespace coppice {

enum class RunOutcome { kFinished, kAlreadyFinished, kInterrupted };

struct RunResult {
  RunOutcome outcome = RunOutcome::kFinished;
  nlohmann::json report;  // empty unless finished; of a sweep, sweep_report()
};

/// Runs to the end, or until `SIGTERM`/`SIGINT`: then the block at work is finished and stored.
/// Where an allocation is to be measured, a sweep of trials runs first (see unit_trials_run.h).
/// Throws any of the program's errors; nothing that looks finished is left behind.
RunResult prune_run(const PruneRunOptions& options);

}  // namespace coppice
