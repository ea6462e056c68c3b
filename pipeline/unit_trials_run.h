// The sweep before a run whose allocation is to be measured: one trial a half-block.
#pragma once

#include <exception>
#include <optional>
#include <vector>

#include "pipeline/prune_run_options.h"
#include "pipeline/unit_allocation.h"

namespace coppice {

struct UnitTrialsRun {
  PruneRunOptions options;                     // a sweep without checkpoints, in work/"trials"
  std::vector<std::vector<UnitTrial>> trials;  // by recipe; empty where nothing is measured
};

/// Nothing where no recipe wants trials. Reads headers. Throws as open_source(), and ConfigError
/// for recipes that do not fit the model.
std::optional<UnitTrialsRun> unit_trials_run(const PruneRunOptions& options);

/// Of the trials' refusal and of that of the run behind them, which alone would hide the other;
/// each may be null, which is no refusal.
std::exception_ptr with_trials(const std::exception_ptr& trials, const std::exception_ptr& run);

/// The run behind it, with nothing left to be measured. Reads what the finished trials have
/// recorded. Throws IoError.
PruneRunOptions closed_by_trials(const PruneRunOptions& options, const UnitTrialsRun& run);

}  // namespace coppice
