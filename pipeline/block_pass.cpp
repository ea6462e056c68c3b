#include "pipeline/block_pass.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "pipeline/interrupt.h"
#include "pipeline/telemetry/process.h"
#include "stages/propagation.h"
#include "stages/stage_table.h"

namespace coppice {
namespace {

// Adds to `seconds` what the device's thread waited for activations while this lives.
class ActivationWaits {
 public:
  ActivationWaits(const CacheUser& user, double& seconds)
      : user_(user), seconds_(seconds), before_(user.waits.seconds()) {}
  ~ActivationWaits() { seconds_ += user_.waits.seconds() - before_; }
  ActivationWaits(const ActivationWaits&) = delete;
  ActivationWaits& operator=(const ActivationWaits&) = delete;

 private:
  const CacheUser& user_;
  double& seconds_;
  double before_;
};

std::vector<VariantOptions> options_of(const std::vector<Recipe>& recipes) {
  std::vector<VariantOptions> options;
  options.reserve(recipes.size());
  for (const Recipe& recipe : recipes) options.push_back({recipe.prune, recipe.reconstruct});
  return options;
}

CacheOptions cache_options(PassContext& context) {
  const Architecture& architecture = context.model.architecture;
  const RunSettings& settings = context.plan.settings;
  CacheOptions options;
  options.directory = context.work;
  options.shape = {context.tokens.count(), context.tokens.seqlen, architecture.hidden,
                   architecture.dtype};
  options.lengths = context.tokens.lengths;
  options.compute = context.compute;
  options.windows_ahead = settings.windows_ahead;
  options.windows_behind = settings.windows_behind;
  options.codec_threads = context.machine.codec_threads();
  options.targets_in_ram = settings.targets_in_ram;
  options.inputs_in_ram = settings.inputs_in_ram;
  options.with_room = [&context](uint64_t bytes, const std::function<void()>& take) {
    context.space.with_room(context.work, bytes, take);
  };
  return options;
}

}  // namespace

BlockPass::Lane::Lane(PassContext& context, Device& device_in, CachedBoundaries& cached)
    : device(device_in), user{.device = &device_in}, boundaries(cached, user) {
  user.on_read = [this, &context](int windows) {
    windows_read += windows;
    context.progress.now(fmt::format("{} {} windows", at_work, windows_read));
  };
  const Architecture& architecture = context.model.architecture;
  device.executor().run([&] {
    rotary = make_rotary_table(architecture.rope, architecture.head_dim, context.tokens.seqlen,
                               context.compute, device.where());
  });
}

BlockPass::BlockPass(PassContext& context, std::vector<Recipe> recipes)
    : context_(context), recipes_(std::move(recipes)) {
  boundaries_ = std::make_unique<CachedBoundaries>(
      cache_options(context_), context_.machine.engine(), context_.machine.hdf5_thread(),
      context_.machine.meters(), [this](Boundary boundary, const FileRecord& file) {
        context_.space.with_room(context_.work, 0,
                                 [&] { context_.state.record_boundary(boundary, file); });
      });
  boundaries_->set_unwanted([this](Boundary boundary) { return is_unwanted(boundary); });
  const Calibrate::Convert convert = context_.plan.settings.convert;
  forward_ = forward_stage(options_of(recipes_), convert);
  forward_only_ = std::make_unique<Calibrate>(Calibrate::Options{.convert = convert});
  for (const Recipe& recipe : recipes_) {
    adapt_stages_.push_back(adapt_stages(recipe.prune, recipe.reconstruct));
  }
}

const Stage* BlockPass::dense_stage(const ModelSpan& span) const {
  return is_to_adapt(span) ? forward_.get() : forward_only_.get();
}

std::vector<Variant> BlockPass::variants_of(GraphSpan& span) {
  std::vector<Variant> variants;
  variants.reserve(recipes_.size());
  for (const Recipe& recipe : recipes_) {
    Variant& variant = variants.emplace_back();
    variant.prune = recipe.prune;
    variant.reconstruct = recipe.reconstruct;
    if (context_.masks != nullptr) {
      give_masks(span, *context_.masks, device_of(span), variant);
    }
    if (context_.unit_scores != nullptr && recipe.prune.method == PruneMethod::kSnip) {
      variant.unit_scores = *context_.unit_scores;
    }
  }
  return variants;
}

// ---- which hidden states are kept, and where to start ---------------------------------------

// The next span starts from what leaves a span, in every stream there is; all else is for the
// windows of the span itself.
bool BlockPass::is_unwanted(Boundary boundary) const {
  if (boundary.half == 0) return false;
  const ModelSpan span = context_.planner.span_of_block((boundary.half - 1) / 2);
  const bool is_last = boundary.half == 2 * context_.model.architecture.num_blocks;
  const bool leaves_span = boundary.half == 2 * span.last_block;
  if (leaves_span && !is_last) return false;
  if (is_last && keeps_last_boundary_ && boundary.stream == Stream::kDense) return false;
  return std::all_of(recipes_.begin(), recipes_.end(), [&](const Recipe& recipe) {
    return is_unwanted(boundary, span, recipe.reconstruct);
  });
}

bool BlockPass::is_unwanted(Boundary boundary, const ModelSpan& span,
                            const ReconstructOptions& options) const {
  const WindowKind window = options.window.kind;
  const bool leaves_span = boundary.half == 2 * span.last_block;
  if (boundary.stream == Stream::kPropagated) return leaves_span || window == WindowKind::kBlock;
  if (options.propagation == Propagation::kSparse || !is_to_adapt(span)) return true;
  if (window == WindowKind::kNone) return true;
  // What leaves a block is a target of whole ones, and of its MLP.
  if (!boundary.is_inside_a_block()) {
    if (leaves_span) return window == WindowKind::kMatrix;
    const int block = (boundary.half - 1) / 2 - span.first_block;
    const bool ends_window = (block + 1) % options.window.blocks == 0;
    return window == WindowKind::kBlock && !ends_window;
  }
  return context_.plan.settings.recompute_targets || !has_windows_inside_blocks(options.window);
}

bool BlockPass::can_start_at(const ModelSpan& span) const {
  const int half = 2 * span.first_block;
  const auto has = [&](Stream stream) {
    const Boundary boundary = entering(stream, half);
    if (!context_.state.has_boundary(boundary)) return false;
    const std::filesystem::path path = boundaries_->path_of(boundary);
    if (!std::filesystem::exists(path)) return false;  // an earlier pass removed it
    const std::optional<std::string> fault = boundaries_->fault_of(boundary);
    if (fault) context_.progress.note(fmt::format("{}; it is made again", *fault));
    return !fault;
  };
  return (!forward_ || has(Stream::kDense)) &&
         (!propagates(recipes_.front().reconstruct) || has(Stream::kPropagated));
}

// From the first span without a record, or from the last one before it whose inputs are there.
void BlockPass::choose_spans() {
  const std::vector<ModelSpan> blocks = context_.planner.block_spans();
  auto first = std::find_if(blocks.begin(), blocks.end(),
                            [this](const ModelSpan& span) { return !is_recorded(span); });
  if (first != blocks.end()) {
    bool is_there = can_start_at(*first);
    while (!is_there && first != blocks.begin()) is_there = can_start_at(*--first);
    if (!is_there) spans_ = context_.planner.embed_spans();
    spans_.insert(spans_.end(), first, blocks.end());
    for (int half = 0; half < 2 * first->first_block; ++half) expire(half);
  }
  const std::vector<ModelSpan> behind = spans_behind();
  spans_.insert(spans_.end(), behind.begin(), behind.end());
}

void BlockPass::expire(int half) {
  boundaries_->expire({Stream::kDense, half});
  boundaries_->expire({Stream::kPropagated, half});
}

void BlockPass::count_uses() {
  for (const ModelSpan& span : spans_) {
    if (span.kind == SpanKind::kBlock) ++uses_[2 * span.first_block].adaptations;
  }
  for (const ModelSpan& span : spans_) {
    if (span.kind != SpanKind::kBlock) continue;
    const auto next = uses_.find(2 * span.last_block);
    if (next != uses_.end()) ++next->second.adaptations;
  }
}

// What no windows read any more leaves memory; the disk, when it is not wanted by a run that is
// continued either.
void BlockPass::adapted(HalfRange halves) {
  std::lock_guard lock(mutex_);
  for (const int half : {halves.first, halves.last}) {
    const auto uses = uses_.find(half);
    if (uses == uses_.end() || --uses->second.adaptations > 0) continue;
    for (const Stream stream : {Stream::kDense, Stream::kPropagated}) {
      boundaries_->forget({stream, half});
    }
    if (uses->second.is_recorded) expire(half);
  }
}

void BlockPass::recorded(int half) {
  std::lock_guard lock(mutex_);
  InputUses& uses = uses_.at(half);
  uses.is_recorded = true;
  if (uses.adaptations == 0) expire(half);
}

// ---- the graph --------------------------------------------------------------------------------

bool BlockPass::run() {
  choose_spans();
  if (spans_.empty()) return true;
  count_uses();
  Machine& machine = context_.machine;
  const int num_devices = uses_all_devices() ? machine.num_devices() : 1;
  for (int index = 0; index < num_devices; ++index) {
    lanes_.emplace_back(context_, machine.device(index), *boundaries_);
  }
  GraphWork work;
  work.num_spans = int(spans_.size());
  work.plan = [this](GraphSpan& span) {
    plan_span(span, context_.planner, spans_[size_t(span.index)]);
  };
  work.forward = [this](GraphSpan& span) { forward(span); };
  work.adapt = [this](GraphSpan& span) { adapt(span); };
  work.store = [this](GraphSpan& span) { store(span); };
  BlockGraph graph(
      machine.graph_options(context_.resources, context_.plan.settings,
                            context_.planner.slot_bytes(), context_.output_bytes, num_devices),
      std::move(work), machine.engine(), machine.graph_devices(num_devices),
      machine.store_thread());
  int steps = 0;
  for (const ModelSpan& span : spans_) {
    if (span.kind == SpanKind::kBlock) steps += num_steps(span);
  }
  context_.progress.expect(steps);
  const InterruptGuard guard(graph);
  try {
    return graph.run().skipped == 0;
  } catch (...) {
    context_.space.give_up();  // what is still being written waits for no room
    throw;
  }
}

void BlockPass::run_stage(const GraphSpan& span, const Stage& stage, WindowJob& job) {
  Lane& lane = lane_of(span);
  lane.at_work = fmt::format("block {}: {}", job.halves.first_block(), stage.name());
  lane.windows_read = 0;
  const TraceSlice slice(context_.trace, Track::kCompute, lane.at_work);
  const auto start = std::chrono::steady_clock::now();
  stage.run(job);
  lane.device.finish();  // what a GPU was only asked for is this stage's time, not the next one's
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const SpanShape shape{context_.model.architecture,
                        job.halves,
                        context_.tokens.count(),
                        context_.tokens.seqlen,
                        int64_t(c10::elementSize(context_.compute)),
                        lane.device.is_host(),
                        job.span.kept_activations};
  const double flop = stage.cost(shape).flop();
  {
    std::lock_guard lock(mutex_);
    StageTotals& totals = context_.stage_totals[std::string(stage.name())];
    totals.seconds += seconds;
    totals.flop += flop;
  }
  context_.progress.detail(
      fmt::format("{}, half-blocks {}-{}: {}, {:.0f} GFLOP/s, {} at the peak so far", lane.at_work,
                  job.halves.first, job.halves.last - 1, human_seconds(seconds),
                  flop / seconds * 1e-9, human_bytes(double(peak_rss_bytes()))));
}

void BlockPass::forward(GraphSpan& span) {
  Lane& lane = lane_of(span);
  const Stopwatch busy(context_.machine.meters().device_busy);
  const TraceSlice slice(context_.trace, Track::kCompute, [&] { return span.name + ": forward"; });
  const ActivationWaits waits(lane.user, work_of(span).waited_for_activations);
  const ModelSpan& what = work_of(span).span;
  if (what.kind == SpanKind::kHead) {
    behind(span);
    lane.device.finish();  // the span's slot is given back
    return;
  }
  if (what.kind == SpanKind::kEmbed) {
    if (!embedding_) embedding_ = lane.boundaries.sink({Stream::kDense, 0});
    embed_windows(span, context_.model, context_.tokens, lane.device, *embedding_);
    if (what.last == context_.tokens.count()) embedding_.reset();
    lane.device.finish();  // the span's slot is given back
    return;
  }
  start_job(span, context_.model, lane.device, lane.rotary, lane.boundaries,
            is_to_adapt(what) ? variants_of(span) : std::vector<Variant>{},
            context_.plan.settings.recompute_targets ? Targets::kRecomputed : Targets::kCached);
  work_of(span).job->kept_activations = context_.plan.settings.kept_activations;
  WindowJob job{*work_of(span).job, work_of(span).job->halves, nullptr};
  if (const Stage* stage = dense_stage(what)) run_stage(span, *stage, job);
}

void BlockPass::adapt(GraphSpan& span) {
  SpanWork& work = work_of(span);
  if (work.job == nullptr) return;
  const Stopwatch busy(context_.machine.meters().device_busy);
  const TraceSlice slice(context_.trace, Track::kCompute, [&] { return span.name + ": adapt"; });
  Lane& lane = lane_of(span);
  const ActivationWaits waits(lane.user, work.waited_for_activations);
  SpanJob& job = *work.job;
  for (size_t recipe = 0; recipe < job.variants.size(); ++recipe) {
    Variant& variant = job.variants[recipe];
    begin(span, recipe, variant);
    for (const HalfRange& window : windows_of(job.halves, variant.reconstruct.window)) {
      if (!is_wanted(window)) continue;
      WindowJob window_job{job, window, &variant};
      for (const auto& stage : adapt_stages_[recipe]) run_stage(span, *stage, window_job);
      variant.masks.clear();
    }
    end(span, recipe, variant);
    variant = {};  // the next one may want its room
  }
  leave(span, job);
  lane.device.finish();  // the span's slot is given back
  const HalfRange halves = work.job->halves;
  work.job.reset();
  for (int half = halves.first + 1; half < halves.last; ++half) expire(half);  // made again with it
  adapted(halves);
}

void BlockPass::store(GraphSpan& span) {
  const ModelSpan& what = work_of(span).span;
  if (what.kind != SpanKind::kBlock) return;
  write(span);
  // A record lets the span's input go, so what the next span reads must be there first.
  // A file that could not be synced must not go unheard, though its windows were read from memory.
  for (const Stream stream : {Stream::kDense, Stream::kPropagated}) {
    boundaries_->wait_durable({stream, 2 * what.first_block});
    const Boundary next{stream, 2 * what.last_block};
    if (!is_unwanted(next)) boundaries_->wait_durable(next);
  }
  record(span);
  recorded(2 * what.first_block);
  const bool is_last = what.last_block == context_.model.architecture.num_blocks;
  if (is_last && !keeps_last_boundary_) expire(2 * what.last_block);  // only targets
}

}  // namespace coppice
