// What settings take: memory and disk item by item, work and traffic, time by rates.
#pragma once

#include <cstdint>

#include "pipeline/plan/run_plan.h"

namespace coppice {

/// One window of hidden states in the model's dtype.
uint64_t window_bytes(const PlanInputs& inputs);

/// Whether the recipe reconstructs halves of blocks, whose targets lie inside them.
bool has_half_block_boundaries(const PlanInputs& inputs);

/// Streams of hidden states that flow between blocks, and how many have a boundary inside of each.
int num_streams(const PlanInputs& inputs);
int streams_inside(const PlanInputs& inputs, bool recompute_targets);

/// The plan with these settings, whether it fits or not. Times are 0 without rates. Pure function.
RunPlan estimate(const PlanInputs& inputs, const RunSettings& settings);

}  // namespace coppice
