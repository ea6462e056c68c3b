// The memory that retraining takes: a whole model lies in it.
#pragma once

#include "pipeline/output_directory.h"
#include "pipeline/resident_budget.h"
#include "stages/retrain_options.h"

namespace coppice {

using RetrainBudget = ResidentBudget;

/// From headers, shapes and what the machine has now. Nothing is refused here.
/// windows   of the text that are read, of `seqlen` tokens
RetrainBudget retrain_budget(const SourceModel& model, const OutputDirectory& output,
                             const RetrainOptions& options, int64_t seqlen,
                             const ResourceOptions& resources, const Device& device,
                             int64_t windows);

/// Throws BudgetError, with every item, where it does not fit.
void require_fits(const RetrainBudget& budget);

}  // namespace coppice
