// What settings take: memory and disk item by item, work and traffic, time by rates.
#pragma once

#include <cstdint>

#include "pipeline/plan/run_plan.h"

namespace coppice {

/// One window of hidden states in the model's dtype.
uint64_t window_bytes(const PlanInputs& inputs);

/// Whether the recipe reconstructs halves of blocks, whose targets lie inside them.
bool has_half_block_boundaries(const PlanInputs& inputs);

/// Streams of hidden states that flow between spans.
int num_streams(const PlanInputs& inputs);
/// Boundaries between the blocks of a span that some window ends at.
int blocks_inside(const PlanInputs& inputs);
/// Boundaries between blocks that live at once: what enters and leaves the span at work, and those.
int boundaries_between(const PlanInputs& inputs);
/// Boundaries inside the blocks of a span.
int streams_inside(const PlanInputs& inputs, bool recompute_targets);

/// The plan with these settings, whether it fits or not. Times are 0 without rates. Pure function.
RunPlan estimate(const PlanInputs& inputs, const RunSettings& settings);

}  // namespace coppice
