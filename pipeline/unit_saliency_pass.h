// Before a run that ranks units by what the loss would miss of them: the whole model lies in memory
// once, and every unit gets its score.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/block_pass.h"  // PassContext
#include "pipeline/resident_budget.h"
#include "stages/retrain/resident_model.h"

namespace coppice {

/// Whether some recipe ranks units so (PruneMethod::kSnip).
bool wants_unit_saliency(const std::vector<Recipe>& recipes);

/// What the pass takes at its peak, beside what the process has, see resident_budget(). From
/// headers and shapes.
ResidentBudget unit_saliency_budget(const SourceModel& model, int64_t seqlen,
                                    const ResourceOptions& resources, const Device& device,
                                    uint64_t process_bytes = 0);

/// Every item of what does not fit, and what would; empty where all does.
std::string unit_saliency_refusal(const ResidentBudget& budget);

/// The safetensors file in the work directory that keeps the scores, see FORMATS.md. It is there
/// only whole: what a process left there counts.
std::filesystem::path unit_saliency_path(const std::filesystem::path& work);

/// Scores all units of the model by all windows (see unit_saliency()), or reads what an earlier
/// process of the run has scored: the same values. What is made is durable when this returns, and
/// the model's memory is free again. Nothing: `SIGTERM`/`SIGINT` came between two windows, and the
/// next process starts anew. Any thread but the device's. Throws IoError, CorruptionError,
/// NumericalError.
std::optional<NamedTensors> unit_saliency_pass(PassContext& context);

}  // namespace coppice
