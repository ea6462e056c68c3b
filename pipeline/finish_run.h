// The end of a run: reports, cards and indices are written, and what was scratch goes.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "pipeline/prune_pass.h"
#include "pipeline/prune_run_options.h"
#include "pipeline/survey.h"

namespace coppice {

/// A run whose blocks are all stored. Everything outlives it.
struct StoredRun {
  const PassContext& context;
  const PruneRunOptions& options;
  const std::vector<RecipeOutput>& outputs;    // by recipe
  const std::vector<SurveyedRecipe>& recipes;  // as they were run
  const PlanInputs& plan_inputs;
  RunTotals measured;
};

/// Completes every recipe's directory, the index last: it loads the moment it is complete. Records
/// that the run is finished, and removes hidden states and tokens. Returns the report, or that of
/// the sweep. Waits for room where a disk is full, until a signal.
nlohmann::json finish_run(const StoredRun& run);

/// Whether what finish_run() wrote is still there. Blocks and masks are known to RunState.
/// side_files   that were copied into every output
bool has_finished_files(const PruneRunOptions& options, const std::vector<RecipeOutput>& outputs,
                        const std::vector<std::string>& side_files);

/// What is of no use once a run is finished: hidden states, scores, tokens. What cannot be removed
/// costs room and nothing else.
void remove_scratch(const std::filesystem::path& work);

}  // namespace coppice
