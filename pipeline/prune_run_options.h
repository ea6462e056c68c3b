// What a run, or a sweep of several, is asked for; and what can be known of it before it starts.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/device/device.h"
#include "pipeline/machine.h"           // Devices
#include "pipeline/plan/plan_inputs.h"  // PlannedJob
#include "pipeline/run_state.h"         // Resume
#include "pipeline/source_model.h"
#include "pipeline/telemetry/progress.h"  // Verbosity

namespace coppice {

struct NamedRecipe {
  std::string name;  // empty, or of the directory below `output` that its result goes to
  Recipe recipe;
  std::vector<std::string> varied;  // what it has of SweepOptions::keys
};

/// Several recipes are compared by the held-out windows, as whole models.
struct SweepOptions {
  std::vector<std::string> keys;  // paths of the recipe's keys in which they differ
  bool writes_checkpoints = true;
};

struct PruneRunOptions {
  std::filesystem::path model;
  std::filesystem::path dataset;
  std::filesystem::path output;
  std::filesystem::path work;          // journal, cache, tokens
  std::filesystem::path architecture;  // an extra description; may be empty
  std::filesystem::path trace;         // a timeline to write; may be empty
  std::vector<NamedRecipe> recipes;    // one, without a sweep; see check_sweep
  std::optional<SweepOptions> sweep;
  Resume resume = Resume::kNo;
  Verbosity verbosity = Verbosity::kNormal;
  std::vector<nlohmann::json> measured;  // by recipe, what trials before the run found, if any
  std::string command;                   // as typed, for the report
  std::string resume_command;
  uint64_t process_bytes = 0;  // resident before anything was worked on; 0: as it is now
  DeviceFactory device_factory = make_devices;

  /// Calibration and resources of all of them.
  const Recipe& shared() const { return recipes.front().recipe; }
  PlannedJob job() const;
};

/// The model as it is run: with the biases that the recipes add. Throws as open_model().
SourceModel open_source(const PruneRunOptions& options);

/// Several where blocks can be worked on independently: dense propagation, and no held-out windows
/// that flow from one adapted block to the next.
Devices devices_for(const PruneRunOptions& options);

/// Throws ConfigError unless the recipes can share one dense pass: they differ in `prune` and
/// `reconstruct` alone, propagate dense activations, hold out the same windows, of which there are
/// two at least, add biases or do not, and take no masks that others do not.
void check_sweep(const std::vector<NamedRecipe>& recipes);

}  // namespace coppice
