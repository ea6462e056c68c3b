// One pass over a model: its embedding, then its blocks, streamed through the graph with the hidden
// states between them cached; what is done with a block is the derived pass's to say.
#pragma once

#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/graph/cached_activations.h"
#include "pipeline/machine.h"
#include "pipeline/model_spans.h"
#include "pipeline/plan/run_plan.h"
#include "pipeline/run_state.h"
#include "pipeline/space_guard.h"
#include "pipeline/span_work.h"
#include "pipeline/telemetry/progress.h"
#include "pipeline/telemetry/run_report.h"
#include "pipeline/telemetry/trace.h"

namespace coppice {

/// What passes of one run share. Everything outlives them.
struct PassContext {
  const SourceModel& model;
  const TokenWindows& tokens;
  const ModelSpans& planner;
  const MaskSource* masks;  // null: none are given
  Machine& machine;
  SpaceGuard& space;
  Progress& progress;
  Trace* trace;  // null: not wanted
  RunState& state;
  const RunPlan& plan;
  at::ScalarType compute;
  ResourceOptions resources;
  std::filesystem::path work;
  uint64_t output_bytes;                            // of what a span's adaptation writes to
  std::map<std::string, StageTotals> stage_totals;  // of a pass that is running: its alone
  /// By the consumer, of the whole model (see unit_saliency_pass); null: no recipe asks for them.
  const std::map<std::string, at::Tensor>* unit_scores = nullptr;
};

/// Used once. Hooks run on the thread they name.
class BlockPass {
 public:
  /// `recipes` share the dense forward (see forward_stage).
  BlockPass(PassContext& context, std::vector<Recipe> recipes);
  virtual ~BlockPass() = default;
  BlockPass(const BlockPass&) = delete;
  BlockPass& operator=(const BlockPass&) = delete;

  /// To the end, false: until `SIGTERM`/`SIGINT`, with the span at work finished and stored.
  /// Throws any of the program's errors.
  bool run();

 protected:
  /// Whether nothing of it is left to be done, but for what the spans behind it read.
  virtual bool is_recorded(const ModelSpan& span) const = 0;
  /// Whether its windows are worked on; else only the dense hidden states are handed on.
  virtual bool is_to_adapt(const ModelSpan& span) const = 0;
  virtual bool can_start_at(const ModelSpan& span) const;
  /// Whether blocks may go to any device there is: nothing of one waits for the adaptation of
  /// another, and hooks of different spans may be called at once.
  virtual bool uses_all_devices() const { return false; }
  /// What a pass reads behind the blocks.
  virtual std::vector<ModelSpan> spans_behind() const { return {}; }
  /// Steps of the progress that a span is worth.
  virtual int num_steps(const ModelSpan& span) const = 0;

  // On the thread of the span's device.
  virtual const Stage* dense_stage(const ModelSpan& span) const;       // null: no forward is wanted
  virtual std::vector<Variant> variants_of(GraphSpan& span);           // of a span that is adapted
  virtual bool is_wanted(HalfRange /*window*/) const { return true; }  // of a span's windows
  virtual void begin(GraphSpan& span, size_t recipe, Variant& variant) = 0;
  virtual void end(GraphSpan& span, size_t recipe, Variant& variant) = 0;
  virtual void leave(GraphSpan& /*span*/, SpanJob& /*job*/) {}  // after its last variant, if any
  virtual void behind(GraphSpan& /*span*/) {}                   // one of spans_behind()

  // On the store's thread, of a block's span: results are made durable, and then, when what the
  // next span reads is durable as well, recorded.
  virtual void write(GraphSpan& span) = 0;
  virtual void record(GraphSpan& span) = 0;

  void run_stage(const GraphSpan& span, const Stage& stage, WindowJob& job);
  Device& device_of(const GraphSpan& span) { return lane_of(span).device; }
  /// As the span's device sees them.
  Boundaries& boundaries_of(const GraphSpan& span) { return lane_of(span).boundaries; }

  PassContext& context_;
  const std::vector<Recipe> recipes_;
  bool keeps_last_boundary_ = false;  // of the dense stream, for who reads it behind the blocks

 private:
  /// What one device has of the pass: its thread's alone.
  struct Lane {
    Lane(PassContext& context, Device& device, CachedBoundaries& cached);

    Device& device;
    CacheUser user;
    UsersBoundaries boundaries;
    RotaryTable rotary;
    std::string at_work;
    int windows_read = 0;
  };

  /// Who still wants the hidden states that a span starts from: with several devices the span
  /// behind them may be done before the one whose targets they are.
  struct InputUses {
    int adaptations = 0;  // of that span, and of the one before
    bool is_recorded = false;
  };

  Lane& lane_of(const GraphSpan& span) { return lanes_[size_t(span.device)]; }
  bool is_unwanted(Boundary boundary) const;
  bool is_unwanted(Boundary boundary, const ModelSpan& span,
                   const ReconstructOptions& options) const;
  void choose_spans();
  void count_uses();
  void expire(int half);
  void adapted(HalfRange halves);
  void recorded(int half);
  void forward(GraphSpan& span);
  void adapt(GraphSpan& span);
  void store(GraphSpan& span);

  std::unique_ptr<CachedBoundaries> boundaries_;
  std::deque<Lane> lanes_;  // by device
  std::unique_ptr<Stage> forward_, forward_only_;
  std::vector<std::vector<std::unique_ptr<Stage>>> adapt_stages_;  // by recipe
  std::unique_ptr<ActivationSink> embedding_;  // open while the embedding's spans pass
  std::vector<ModelSpan> spans_;
  std::mutex mutex_;
  std::map<int, InputUses> uses_;  // by half-block, with the mutex held
};

}  // namespace coppice
