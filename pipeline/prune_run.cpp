#include "pipeline/prune_run.h"

#include <fmt/format.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "pipeline/graph/cached_activations.h"
#include "pipeline/heap.h"
#include "pipeline/interrupt.h"
#include "pipeline/machine.h"
#include "pipeline/output_directory.h"
#include "pipeline/plan/plan_inputs.h"
#include "pipeline/plan/plan_text.h"
#include "pipeline/run_checks.h"
#include "pipeline/space_guard.h"
#include "pipeline/span_work.h"
#include "pipeline/telemetry/model_card.h"
#include "pipeline/telemetry/process.h"
#include "pipeline/telemetry/run_report.h"
#include "pipeline/telemetry/trace.h"
#include "pipeline/token_windows.h"
#include "stages/propagation.h"
#include "stages/stage_table.h"

namespace coppice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

// Raised whenever the same recipe would give other bytes than before.
constexpr int kNumericsVersion = 1;

// Of the memory planned: what one stage freed in small pieces the next cannot use in large ones,
// and giving pages back at once would have every stage touch new ones.
constexpr double kHeapShare = 1.05;

// Adds to `seconds` what the device's thread waited for activations while this lives.
class ActivationWaits {
 public:
  ActivationWaits(const RunMeters& meters, double& seconds)
      : meters_(meters), seconds_(seconds), before_(meters.waits.seconds()) {}
  ~ActivationWaits() { seconds_ += meters_.waits.seconds() - before_; }
  ActivationWaits(const ActivationWaits&) = delete;
  ActivationWaits& operator=(const ActivationWaits&) = delete;

 private:
  const RunMeters& meters_;
  double& seconds_;
  double before_;
};

class PruneRun {
 public:
  explicit PruneRun(const PruneRunOptions& options);
  RunResult execute();

 private:
  // What an adapted block hands from the device's thread to the store's.
  struct Adapted {
    int block = 0;
    std::span<const std::byte> image;
    std::vector<std::byte> masks;  // the image of theirs; empty: none are asked for
    json report;
    std::vector<FileRecord> files = {};
  };

  Fingerprint fingerprint() const;
  CacheOptions cache_options();
  void make_plan(const WorkLeft& left);
  WorkLeft work_left() const;
  void choose_spans();
  bool is_unwanted(Boundary boundary) const;
  bool is_recorded(const ModelSpan& span) const;
  bool is_to_adapt(const ModelSpan& span) const;
  bool can_start_at(const ModelSpan& span) const;
  GraphResult stream();
  void run_stage(const Stage& stage, WindowJob& job);
  void forward(GraphSpan& span);
  void adapt(GraphSpan& span);
  void store(GraphSpan& span);
  std::vector<FileRecord> write_block(const Adapted& block, const std::string& span);
  void expire(int half);
  json finish();
  json report_head() const;

  const PruneRunOptions& options_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point stream_start_;
  Progress progress_;
  SourceModel model_;
  std::unique_ptr<Trace> trace_;  // null: not wanted
  TokenWindows tokens_;
  std::unique_ptr<MaskSource> masks_;  // null: scores decide
  Machine machine_;
  ModelSpans planner_;
  OutputDirectory output_;
  SpaceGuard space_;
  at::ScalarType compute_;
  RotaryTable rotary_;
  std::unique_ptr<Stage> forward_stage_, forward_only_;
  std::vector<std::unique_ptr<Stage>> adapt_stages_;
  std::unique_ptr<RunState> state_;
  std::unique_ptr<CachedBoundaries> boundaries_;
  std::unique_ptr<ActivationSink> embedding_;  // open while the embedding's spans pass
  std::vector<ModelSpan> spans_;
  // By the span's first block; device's thread puts, store's thread takes.
  std::map<int, std::vector<Adapted>> adapted_;
  std::mutex adapted_mutex_;
  std::string at_work_;
  int windows_read_ = 0;
  std::map<std::string, StageTotals> stage_totals_;  // device's thread
  std::optional<PlanInputs> plan_inputs_;
  RunPlan plan_;
};

PruneRun::PruneRun(const PruneRunOptions& options)
    : options_(options),
      progress_(options.verbosity),
      model_(open_model(options.model, options.architecture)),
      trace_(make_trace(options.trace, [this](const auto& line) { progress_.note(line); })),
      tokens_((require_resumable(options.work, options.resume, options.resume_command),
               check_output_directory(options.output, options.work),
               calibration_windows({options.dataset, options.model, options.work / "tokens"},
                                   options.recipe.calibration, model_.architecture))),
      masks_(open_masks(options.recipe.prune)),
      machine_(
          options.recipe.resources, [this](const std::string& line) { progress_.note(line); },
          trace_.get()),
      planner_(model_, tokens_, options.recipe.reconstruct.window.blocks, masks_.get()),
      output_(options.output, model_),
      space_({.patience = std::chrono::seconds(options.recipe.resources.disk_wait_seconds),
              .note = [this](const std::string& line) { progress_.note(line); },
              .stopped = InterruptGuard::requested}),
      compute_(machine_.device().compute_dtype(scalar_type(model_.architecture.dtype))) {
  check_against_model(options.recipe, model_.architecture, tokens_);
  if (masks_) masks_->check(model_.architecture);
}

Fingerprint PruneRun::fingerprint() const {
  Fingerprint print = fingerprint_checkpoint(model_.checkpoint);
  if (masks_) print["masks"] = fingerprint_shards(masks_->checkpoint());
  for (const RecipeKey& key : recipe_keys()) {
    if (key.changes_output) print["recipe." + key.path()] = key.get(options_.recipe);
  }
  print["calibration.tokens"] = tokens_.xxh3_128;
  // Everything else that changes bits: instruction set, threads inside an operation, libraries.
  print["numerics"] =
      fmt::format("version={} torch={} {} compute={}", kNumericsVersion, TORCH_VERSION,
                  machine_.device().numerics(), c10::toString(compute_));
  return print;
}

CacheOptions PruneRun::cache_options() {
  CacheOptions options;
  options.directory = options_.work;
  options.shape = {tokens_.count(), tokens_.seqlen, model_.architecture.hidden,
                   model_.architecture.dtype};
  options.compute = compute_;
  options.device = machine_.device().where();
  options.windows_ahead = plan_.settings.windows_ahead;
  options.windows_behind = plan_.settings.windows_behind;
  options.targets_in_ram = plan_.settings.targets_in_ram;
  options.inputs_in_ram = plan_.settings.inputs_in_ram;
  options.with_room = [this](uint64_t bytes, const std::function<void()>& take) {
    space_.with_room(options_.work, bytes, take);
  };
  return options;
}

bool PruneRun::is_recorded(const ModelSpan& span) const {
  for (int block = span.first_block; block < span.last_block; ++block) {
    if (!state_->has_block(block)) return false;
  }
  return true;
}

// A recorded block whose hidden states are gone only hands on the dense ones; what an adapted
// prefix hands on needs the adapted weights, which are made again, the same.
bool PruneRun::is_to_adapt(const ModelSpan& span) const {
  return span.kind == SpanKind::kBlock &&
         (propagates(options_.recipe.reconstruct) || !is_recorded(span));
}

// The next span starts from what leaves a span, in every stream there is; all else is for the
// windows of the span itself.
bool PruneRun::is_unwanted(Boundary boundary) const {
  const ReconstructOptions& options = options_.recipe.reconstruct;
  const WindowKind window = options.window.kind;
  if (boundary.half == 0) return false;
  const ModelSpan span = planner_.span_of_block((boundary.half - 1) / 2);
  const bool is_last = boundary.half == 2 * model_.architecture.num_blocks;
  const bool leaves_span = boundary.half == 2 * span.last_block;
  if (leaves_span && !is_last) return false;
  if (boundary.stream == Stream::kPropagated) return is_last || window == WindowKind::kBlock;
  if (options.propagation == Propagation::kSparse || !is_to_adapt(span)) return true;
  if (leaves_span) return window == WindowKind::kNone || window == WindowKind::kMatrix;
  return plan_.settings.recompute_targets || !has_windows_inside_blocks(options.window);
}

bool PruneRun::can_start_at(const ModelSpan& span) const {
  const int half = 2 * span.first_block;
  const auto has = [&](Stream stream) { return state_->has_boundary(entering(stream, half)); };
  return (!forward_stage_ || has(Stream::kDense)) &&
         (!propagates(options_.recipe.reconstruct) || has(Stream::kPropagated));
}

// From the first span without a record, or from the last one before it whose inputs are there.
void PruneRun::choose_spans() {
  const std::vector<ModelSpan> blocks = planner_.block_spans();
  auto first = std::find_if(blocks.begin(), blocks.end(),
                            [this](const ModelSpan& span) { return !is_recorded(span); });
  if (first == blocks.end()) return;
  while (first != blocks.begin() && !can_start_at(*first)) --first;
  if (!can_start_at(*first)) spans_ = planner_.embed_spans();
  spans_.insert(spans_.end(), first, blocks.end());
  for (int half = 0; half < 2 * first->first_block; ++half) expire(half);
}

void PruneRun::expire(int half) {
  boundaries_->expire({Stream::kDense, half});
  boundaries_->expire({Stream::kPropagated, half});
}

GraphResult PruneRun::stream() {
  if (spans_.empty()) return {};  // every block is there: only the end was missing
  GraphWork work;
  work.num_spans = int(spans_.size());
  work.plan = [this](GraphSpan& span) { plan_span(span, planner_, spans_[size_t(span.index)]); };
  work.forward = [this](GraphSpan& span) { forward(span); };
  work.adapt = [this](GraphSpan& span) { adapt(span); };
  work.store = [this](GraphSpan& span) { store(span); };
  machine_.read_often(planner_.files());
  BlockGraph graph(
      machine_.graph_options(options_.recipe.resources, plan_.settings, planner_.slot_bytes(),
                             output_.largest_image_bytes(planner_.blocks_per_span())),
      std::move(work), machine_.engine(), machine_.device().executor(), machine_.store_thread());
  int num_blocks = 0;
  for (const ModelSpan& span : spans_) {
    if (is_to_adapt(span)) num_blocks += span.last_block - span.first_block;
  }
  progress_.expect(num_blocks);
  const InterruptGuard guard(graph);
  try {
    return graph.run();
  } catch (...) {
    space_.give_up();  // what is still being written waits for no room
    throw;
  }
}

void PruneRun::run_stage(const Stage& stage, WindowJob& job) {
  at_work_ = fmt::format("block {}: {}", job.halves.first_block(), stage.name());
  windows_read_ = 0;
  const TraceSlice slice(trace_.get(), Track::kCompute, at_work_);
  StageTotals& totals = stage_totals_[std::string(stage.name())];
  const auto start = std::chrono::steady_clock::now();
  stage.run(job);
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const SpanShape shape{model_.architecture, job.halves, tokens_.count(), tokens_.seqlen,
                        int64_t(c10::elementSize(compute_))};
  const double flop = stage.cost(shape).flop();
  totals.seconds += seconds;
  totals.flop += flop;
  progress_.detail(fmt::format("{}, half-blocks {}-{}: {}, {:.0f} GFLOP/s, {} at the peak so far",
                               at_work_, job.halves.first, job.halves.last - 1,
                               human_seconds(seconds), flop / seconds * 1e-9,
                               human_bytes(double(peak_rss_bytes()))));
}

void PruneRun::forward(GraphSpan& span) {
  const Stopwatch busy(machine_.meters().device_busy);
  const TraceSlice slice(trace_.get(), Track::kCompute, [&] { return span.name + ": forward"; });
  const ActivationWaits waits(machine_.meters(), work_of(span).waited_for_activations);
  const ModelSpan& what = work_of(span).span;
  if (what.kind == SpanKind::kEmbed) {
    if (!embedding_) embedding_ = boundaries_->sink({Stream::kDense, 0});
    embed_windows(span, model_, tokens_, machine_.device(), *embedding_);
    if (what.last == tokens_.count()) embedding_.reset();
    return;
  }
  std::vector<Variant> variants;
  if (is_to_adapt(what)) {
    Variant variant;
    variant.prune = options_.recipe.prune;
    variant.reconstruct = options_.recipe.reconstruct;
    if (masks_) give_masks(span, *masks_, machine_.device(), variant);
    variants.push_back(std::move(variant));
  }
  start_job(span, model_, machine_.device(), rotary_, *boundaries_, std::move(variants),
            plan_.settings.recompute_targets ? Targets::kRecomputed : Targets::kCached);
  WindowJob job{*work_of(span).job, work_of(span).job->halves, nullptr};
  const std::unique_ptr<Stage>& stage = is_to_adapt(what) ? forward_stage_ : forward_only_;
  if (stage) run_stage(*stage, job);
}

void PruneRun::adapt(GraphSpan& span) {
  SpanWork& work = work_of(span);
  if (work.job == nullptr) return;
  const Stopwatch busy(machine_.meters().device_busy);
  const TraceSlice slice(trace_.get(), Track::kCompute, [&] { return span.name + ": adapt"; });
  const ActivationWaits waits(machine_.meters(), work.waited_for_activations);
  SpanJob& job = *work.job;
  for (Variant& variant : job.variants) {
    for (int block = work.span.first_block; block < work.span.last_block; ++block) {
      variant.places.merge(output_.places(
          output_.part_of(span.output, work.span.first_block, block), block, machine_.device()));
    }
    for (const HalfRange& window : windows_of(job.halves, options_.recipe.reconstruct.window)) {
      WindowJob window_job{job, window, &variant};
      for (const auto& stage : adapt_stages_) run_stage(*stage, window_job);
      variant.masks.clear();
    }
    std::vector<Adapted> blocks;
    for (int block = work.span.first_block; block < work.span.last_block; ++block) {
      const auto part = output_.part_of(span.output, work.span.first_block, block);
      blocks.push_back({block,
                        output_.assemble_block(part, block, span, variant, machine_.device()),
                        output_.assemble_masks(block, variant),
                        block_report(block, in_block(model_.architecture, block, ""), variant)});
    }
    std::lock_guard lock(adapted_mutex_);
    adapted_[work.span.first_block] = std::move(blocks);
  }
  const HalfRange halves = work.job->halves;
  work.job.reset();
  for (int half = halves.first + 1; half < halves.last; ++half) expire(half);  // made again with it
  for (const Stream stream : {Stream::kDense, Stream::kPropagated}) {
    boundaries_->forget({stream, halves.first});  // on disk until the span is recorded
  }
}

void PruneRun::store(GraphSpan& span) {
  const ModelSpan& what = work_of(span).span;
  if (what.kind != SpanKind::kBlock) return;
  std::unique_lock lock(adapted_mutex_);
  auto adapted = adapted_.extract(what.first_block);
  lock.unlock();
  if (!adapted.empty()) {
    for (Adapted& block : adapted.mapped()) block.files = write_block(block, span.name);
  }
  // A record lets the span's input go, so what the next span reads must be there first.
  // A file that could not be synced must not go unheard, though its windows were read from memory.
  for (const Stream stream : {Stream::kDense, Stream::kPropagated}) {
    boundaries_->wait_durable({stream, 2 * what.first_block});
    const Boundary next{stream, 2 * what.last_block};
    if (!is_unwanted(next)) boundaries_->wait_durable(next);
  }
  // Else recorded by an earlier process: only the hidden states were missing.
  if (!adapted.empty()) {
    for (Adapted& block : adapted.mapped()) {
      if (block.block == what.first_block) {
        block.report.update(waits_report(span.times, work_of(span).waited_for_activations,
                                         SpanTimes::Clock::now()));
      }
      space_.with_room(options_.work, 0,
                       [&] { state_->record_block(block.block, block.files, block.report); });
      progress_.done(block_line(block.report, int(model_.architecture.num_blocks)));
    }
  }
  expire(2 * what.first_block);
}

std::vector<FileRecord> PruneRun::write_block(const Adapted& block, const std::string& span) {
  std::vector<FileRecord> files;
  space_.with_room(options_.output, block.image.size() + block.masks.size(), [&] {
    const Stopwatch busy(machine_.meters().writes);
    const TraceSlice slice(trace_.get(), Track::kShardWrites, span);
    files = {output_.write_block(block.block, block.image)};
    if (!block.masks.empty()) files.push_back(output_.write_masks(block.block, block.masks));
  });
  for (const FileRecord& file : files) machine_.meters().writes.add_bytes(file.bytes);
  return files;
}

json PruneRun::report_head() const {
  const Device& device = machine_.device();
  const double measured = plan_inputs_->rates.mlp_product_flop;
  const json product_rate = measured > 0 ? json(measured) : json();
  return {{"version", COPPICE_VERSION},
          {"command", options_.command},
          {"model", model_report(model_)},
          {"machine",
           {{"device", device.name()},
            {"description", device.description()},
            {"compute_dtype", c10::toString(compute_)},
            {"product_flop_per_second", product_rate},
            {"io_engine", machine_.engine().name()}}},
          {"recipe", recipe_json(options_.recipe)},
          {"calibration",
           {{"nsamples", tokens_.count()},
            {"seqlen", tokens_.seqlen},
            {"tokens", tokens_.ids.size()},
            {"dataset_sha256", tokens_.dataset_sha256}}}};
}

// Everything but the index first: the directory loads the moment it is complete.
json PruneRun::finish() {
  RunTotals totals;
  totals.wall_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  totals.device_idle_seconds = machine_.device().executor().idle_seconds();
  totals.resumed = state_->is_resumed();
  totals.stages = stage_totals_;
  totals.streamed_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - stream_start_).count();
  json report =
      run_report(report_head(), state_->block_reports(), totals_report(machine_.meters(), totals));
  report["plan"] = plan_against_run(plan_json(plan_, *plan_inputs_), totals);
  output_.copy_side_files();
  const fs::path base_card = options_.model / "README.md";
  write_file(options_.output / "recipe.yaml", write_recipe(options_.recipe));
  write_file(options_.output / "README.md",
             model_card(report, fs::exists(base_card) ? read_file(base_card) : ""));
  write_file(options_.output / "coppice_layers.csv", layers_csv(state_->block_reports()));
  write_file(options_.output / "coppice_report.json", report.dump(2) + "\n");
  write_file(options_.work / "coppice_report.json", report.dump(2) + "\n");
  if (options_.recipe.prune.export_masks) output_.write_masks_index();
  output_.write_index();
  state_->record_finished();
  boundaries_.reset();
  for (int half = 0; half <= 2 * int(model_.architecture.num_blocks); ++half) {
    for (const Stream stream : {Stream::kDense, Stream::kPropagated}) {
      fs::remove(options_.work / (to_string({stream, half}) + ".h5"));
    }
  }
  fs::remove_all(options_.work / "tokens");
  return report;
}

WorkLeft PruneRun::work_left() const {
  WorkLeft left;
  for (int block = 0; block < model_.architecture.num_blocks; ++block) {
    if (!state_->has_block(block)) left.blocks.push_back(block);
  }
  left.has_outer = !state_->has_outer();
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.work)) {
    if (entry.path().extension() == ".h5") left.scratch_bytes += entry.file_size();
  }
  return left;
}

// What does not fit is refused before anything is measured, made or read.
void PruneRun::make_plan(const WorkLeft& left) {
  plan_inputs_.emplace(plan_inputs(model_, options_.recipe, planner_, tokens_.count(), machine_,
                                   output_, options_.work, left));
  plan_ = plan_run(*plan_inputs_);
}

RunResult PruneRun::execute() {
  if (!fs::exists(options_.work / "journal.bin")) make_plan(all_work(model_.architecture));
  state_ = std::make_unique<RunState>(options_.work, options_.output, fingerprint(),
                                      options_.resume, options_.resume_command);
  if (state_->is_finished()) return {RunOutcome::kAlreadyFinished, {}};
  remove_unfinished(options_.work);
  remove_unfinished(options_.output);
  make_plan(work_left());
  measure_rates(model_, options_.recipe, machine_, options_.work, *plan_inputs_);
  plan_ = plan_run(*plan_inputs_);
  limit_heap(std::min(plan_.ram.limit, uint64_t(kHeapShare * double(plan_.ram.bytes()))),
             plan_.mapped_bytes);
  stream_start_ = std::chrono::steady_clock::now();
  if (!state_->has_outer()) {
    const TraceSlice slice(trace_.get(), Track::kShardWrites, "outside the blocks");
    FileRecord file;
    space_.with_room(options_.output, plan_inputs_->outer_bytes,
                     [&] { file = output_.write_outer(); });
    space_.with_room(options_.work, 0, [&] { state_->record_outer(file); });
  }

  CacheOptions cache = cache_options();
  cache.on_read = [this](int windows) {
    windows_read_ += windows;
    progress_.now(fmt::format("{} {} windows", at_work_, windows_read_));
  };
  boundaries_ = std::make_unique<CachedBoundaries>(
      std::move(cache), machine_.engine(), machine_.hdf5_thread(), machine_.meters(),
      [this](Boundary boundary, const FileRecord& file) {
        space_.with_room(options_.work, 0, [&] { state_->record_boundary(boundary, file); });
      });
  boundaries_->set_unwanted([this](Boundary boundary) { return is_unwanted(boundary); });

  forward_stage_ =
      forward_stage(options_.recipe.prune, options_.recipe.reconstruct, plan_.settings.convert);
  forward_only_ =
      std::make_unique<Calibrate>(Calibrate::Options{.convert = plan_.settings.convert});
  adapt_stages_ = adapt_stages(options_.recipe.prune, options_.recipe.reconstruct);
  machine_.device().executor().run([this] {
    rotary_ = make_rotary_table(model_.architecture.rope, model_.architecture.head_dim,
                                tokens_.seqlen, compute_, machine_.device().where());
  });
  choose_spans();
  const GraphResult result = stream();
  if (result.skipped > 0) return {RunOutcome::kInterrupted, {}};
  return {RunOutcome::kFinished, finish()};
}

}  // namespace

RunResult prune_run(const PruneRunOptions& options) { return PruneRun(options).execute(); }

}  // namespace coppice
