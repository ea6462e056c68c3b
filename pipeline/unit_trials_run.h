// The sweep before a run whose allocation is to be measured: one trial a half-block.
#pragma once

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

/// The run behind it, with nothing left to be measured. Reads what the finished trials have
/// recorded. Throws IoError.
PruneRunOptions closed_by_trials(const PruneRunOptions& options, const UnitTrialsRun& run);

}  // namespace coppice
