// What the graph's forward does with each kind of span.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "pipeline/device/device.h"
#include "pipeline/graph/block_graph.h"
#include "pipeline/model_spans.h"
#include "pipeline/recomputed_boundaries.h"
#include "stages/span_job.h"

namespace coppice {

/// Travels as GraphSpan::work.
struct SpanWork {
  ModelSpan span;
  SpanReads reads;
  std::unique_ptr<RecomputedBoundaries> recomputed;  // where targets are; outlives the job
  std::unique_ptr<SpanJob> job;                      // blocks only, from forward on
  double waited_for_activations = 0;                 // seconds, in forward and adapt
};

/// Prepares a span of the graph: its name, reads and work. `spans` outlives it.
void plan_span(GraphSpan& span, const ModelSpans& spans, const ModelSpan& what);

SpanWork& work_of(GraphSpan& span);

/// A tensor of the span's slot by name. Valid while the span holds its slot. An FP8 weight is
/// widened: a new tensor.
at::Tensor slot_tensor(const GraphSpan& span, const SourceModel& model, const Device& device,
                       const std::string& name);

/// Hands the masks that were read with the span to a variant, as views of the slot.
void give_masks(const GraphSpan& span, const MaskSource& masks, const Device& device,
                Variant& variant);

/// Writes x_0 of the span's windows: the rows of the embedding that their tokens ask for, and what
/// the architecture makes of them (see embed()).
void embed_windows(const GraphSpan& span, const SourceModel& model, const TokenWindows& tokens,
                   const Device& device, ActivationSink& sink);

/// Whether hidden states inside a block come from the cache or are made again.
enum class Targets { kCached, kRecomputed };

/// Makes the SpanJob of a span of blocks: their weights are views of the slot, or widened.
void start_job(GraphSpan& span, const SourceModel& model, const Device& device,
               const RotaryTable& rotary, Boundaries& boundaries, std::vector<Variant> variants,
               Targets targets = Targets::kCached);

}  // namespace coppice
