// What the recipes of a plan make the machine do: spans, stages, boundaries, reads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pipeline/plan/run_plan.h"
#include "stages/stage.h"

namespace coppice {

/// One window of hidden states in the model's dtype.
uint64_t window_bytes(const PlanInputs& inputs);

// ---- spans and stages

HalfRange span_of(const PlanInputs& inputs);
/// Left to do; the last one may be a part of one.
double spans_to_do(const PlanInputs& inputs);
std::vector<HalfRange> windows_of_span(const PlanInputs& inputs, const Recipe& recipe);
SpanShape shape_of(const PlanInputs& inputs, HalfRange halves,
                   KeptActivations kept = KeptActivations::kAll);

/// What the adaptation of a span writes to: a part for each recipe that is written, one for all
/// others.
uint64_t adapted_bytes(const PlanInputs& inputs);

/// What a recipe does to each of its windows.
std::vector<std::unique_ptr<Stage>> adapt_stages(const PlanInputs& inputs, const Recipe& recipe);
/// Null where no dense forward is wanted.
std::unique_ptr<Stage> forward_stage(const PlanInputs& inputs, Calibrate::Convert convert);

// ---- boundaries

/// Whether a window has several halves, of which the activations of all or of one can be kept.
bool has_windows_of_halves(const PlanInputs& inputs);
/// Whether the recipe reconstructs halves of blocks, whose targets lie inside them.
bool has_half_block_boundaries(const PlanInputs& inputs);
/// Streams of hidden states that flow between spans.
int num_streams(const PlanInputs& inputs);
/// Boundaries between the blocks of a span that some window ends at.
int blocks_inside(const PlanInputs& inputs);
/// Boundaries between blocks that live at once: what enters and leaves the span at work, and those;
/// with several devices also what the dense forward has made ahead of the adaptation.
int boundaries_between(const PlanInputs& inputs, const RunSettings& settings);
/// Those made ahead: a forward runs until no device has a slot to spare.
int boundaries_ahead(const PlanInputs& inputs, const RunSettings& settings);
/// Slots on all devices.
int all_slots(const PlanInputs& inputs, const RunSettings& settings);
/// Spans between forward and adaptation on all devices, with weights and statistics: one at work on
/// each; with several devices, every one that has a slot.
int spans_begun(const PlanInputs& inputs, const RunSettings& settings);
/// Boundaries inside the blocks of a span.
int streams_inside(const PlanInputs& inputs, bool recompute_targets);

// ---- reads

/// Bytes of hidden states that the reconstruction of all windows of a span reads, undone.
double adapt_reads(const PlanInputs& inputs);
/// Of a block (a span of one) whose targets are made again for every read: the dense attention
/// half, forward.
Cost recompute_cost(const PlanInputs& inputs);

// ---- records

/// What is recorded of all blocks for reports and for a run that is continued.
struct RecordBytes {
  uint64_t ram = 0;
  uint64_t journal = 0;
};
RecordBytes record_bytes(const Architecture& architecture, const std::vector<Recipe>& recipes);

}  // namespace coppice
