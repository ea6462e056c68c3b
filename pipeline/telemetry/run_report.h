// coppice_report.json and coppice_layers.csv: what a run did, with stable keys in SI units.
#pragma once

#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>

#include "configs/recipe.h"
#include "pipeline/graph/span_times.h"
#include "pipeline/source_model.h"
#include "pipeline/telemetry/meter.h"
#include "stages/span_job.h"

namespace coppice {

/// What one stage did in all: its time on the device's thread, waits included, and its own count of
/// FLOP.
struct StageTotals {
  double seconds = 0;
  double flop = 0;
};

/// Totals of the process that wrote them; a resumed run says so.
struct RunTotals {
  double wall_seconds = 0;
  double streamed_seconds = 0;     // of the wall: from the first read of weights to the last write
  double device_idle_seconds = 0;  // of the device's thread between tasks
  uint64_t peak_device_bytes = 0;
  bool resumed = false;
  std::map<std::string, StageTotals> stages;
};

/// What was read: path, architecture, parameters, and the hash that identifies the checkpoint.
nlohmann::json model_report(const SourceModel& model);

/// The part of one block, whose tensors' names begin with `prefix`: what the journal keeps and the
/// report lists. A window over several blocks is the first one's. Keys as in the README.
nlohmann::json block_report(int block, const std::string& prefix, const Variant& variant);

/// What waited for what while the block passed, in seconds: {`waits`, `times`}, keys as in the
/// README. `waited_for_activations`: by the device's thread, inside forward and adapt. `stored`:
/// when the shard and what the next block reads were on disk, just before the journal says so.
nlohmann::json waits_report(const SpanTimes& times, double waited_for_activations,
                            SpanTimes::Time stored);

nlohmann::json totals_report(const RunMeters& meters, const RunTotals& totals);

/// A plan (plan_json) beside what the run measured: `ram`, `device`, `bytes_read`, `bytes_written`
/// and `seconds` {planned, measured, ratio}, `stages` likewise by name. Ratios are measured /
/// planned, null where nothing was planned.
nlohmann::json plan_against_run(const nlohmann::json& plan, const RunMeters& meters,
                                const RunTotals& totals);

/// `head` holds version, command, model, recipe, calibration, machine; blocks are added in order.
nlohmann::json run_report(nlohmann::json head, const std::map<int, nlohmann::json>& blocks,
                          const nlohmann::json& totals);

/// Every key of the recipe by section, numbers as numbers.
nlohmann::json recipe_json(const Recipe& recipe);

/// One block for a person: "block 7/30: 50.0 % zeros; attention held-out loss 0.0123 -> 0.0045; …".
std::string block_line(const nlohmann::json& block_report, int num_blocks);

/// One line per linear: block, name, method, pattern, sparsity.
std::string layers_csv(const std::map<int, nlohmann::json>& blocks);

}  // namespace coppice
