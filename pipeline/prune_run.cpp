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
  Fingerprint fingerprint() const;
  CacheOptions cache_options();
  void make_plan(const WorkLeft& left);
  WorkLeft work_left() const;
  void choose_spans();
  bool is_unwanted(Boundary boundary) const;
  bool to_adapt(const ModelSpan& span) const {
    return span.kind == SpanKind::kBlock && !state_->has_block(span.block);
  }
  GraphResult stream();
  void run_stage(const Stage& stage, WindowJob& job);
  void forward(GraphSpan& span);
  void adapt(GraphSpan& span);
  void store(GraphSpan& span);
  void expire_before(int half);
  json finish();
  json report_head() const;

  // What an adapted block hands from the device's thread to the store's.
  struct Adapted {
    std::span<const std::byte> image;
    json report;
  };

  const PruneRunOptions& options_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point stream_start_;
  Progress progress_;
  SourceModel model_;
  std::unique_ptr<Trace> trace_;  // null: not wanted
  TokenWindows tokens_;
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
  std::map<int, Adapted> adapted_;  // by block; device's thread puts, store's thread takes
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
      machine_(
          options.recipe.resources, [this](const std::string& line) { progress_.note(line); },
          trace_.get()),
      planner_(model_, tokens_),
      output_(options.output, model_),
      space_({.patience = std::chrono::seconds(options.recipe.resources.disk_wait_seconds),
              .note = [this](const std::string& line) { progress_.note(line); },
              .stopped = InterruptGuard::requested}),
      compute_(machine_.device().compute_dtype(scalar_type(model_.architecture.dtype))) {
  check_against_model(options.recipe, model_.architecture, tokens_);
}

Fingerprint PruneRun::fingerprint() const {
  Fingerprint print = fingerprint_checkpoint(model_.checkpoint);
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

// Odd boundaries are only targets of half-blocks; the last one is only a target.
bool PruneRun::is_unwanted(Boundary boundary) const {
  const WindowKind window = options_.recipe.reconstruct.window;
  if (boundary.half == 0) return false;
  const int block = (boundary.half - 1) / 2;
  if (boundary.half % 2 == 1) {
    return window != WindowKind::kHalfBlock || plan_.settings.recompute_targets ||
           state_->has_block(block);
  }
  return block + 1 == model_.architecture.num_blocks &&
         (window == WindowKind::kNone || state_->has_block(block));
}

// From the first block without a record, or from the last boundary before it that is still there.
void PruneRun::choose_spans() {
  const int num_blocks = int(model_.architecture.num_blocks);
  int first = 0;
  while (first < num_blocks && state_->has_block(first)) ++first;
  if (first == num_blocks) return;
  while (first > 0 && !state_->has_boundary({Stream::kDense, 2 * first})) --first;
  if (!state_->has_boundary({Stream::kDense, 2 * first})) spans_ = planner_.embed_spans();
  for (int block = first; block < num_blocks; ++block) spans_.push_back(planner_.block_span(block));
  expire_before(2 * first);
}

void PruneRun::expire_before(int half) {
  for (int i = 0; i < half; ++i) boundaries_->expire({Stream::kDense, i});
}

GraphResult PruneRun::stream() {
  if (spans_.empty()) return {};  // every block is there: only the end was missing
  GraphWork work;
  work.num_spans = int(spans_.size());
  work.plan = [this](GraphSpan& span) {
    plan_span(span, model_, planner_, spans_[size_t(span.index)]);
  };
  work.forward = [this](GraphSpan& span) { forward(span); };
  work.adapt = [this](GraphSpan& span) { adapt(span); };
  work.store = [this](GraphSpan& span) { store(span); };
  machine_.read_often(model_.checkpoint.files());
  BlockGraph graph(machine_.graph_options(options_.recipe.resources, plan_.settings,
                                          planner_.slot_bytes(), output_.largest_image_bytes()),
                   std::move(work), machine_.engine(), machine_.device().executor(),
                   machine_.store_thread());
  progress_.expect(int(std::count_if(spans_.begin(), spans_.end(),
                                     [this](const ModelSpan& span) { return to_adapt(span); })));
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
  if (to_adapt(what)) {
    Variant variant;
    variant.prune = options_.recipe.prune;
    variant.reconstruct = options_.recipe.reconstruct;
    variants.push_back(std::move(variant));
  }
  start_job(span, model_, machine_.device(), rotary_, *boundaries_, std::move(variants),
            plan_.settings.recompute_targets ? Targets::kRecomputed : Targets::kCached);
  WindowJob job{*work_of(span).job, work_of(span).job->halves, nullptr};
  run_stage(to_adapt(what) ? *forward_stage_ : *forward_only_, job);
}

void PruneRun::adapt(GraphSpan& span) {
  SpanWork& work = work_of(span);
  if (work.job == nullptr) return;
  const Stopwatch busy(machine_.meters().device_busy);
  const TraceSlice slice(trace_.get(), Track::kCompute, [&] { return span.name + ": adapt"; });
  const ActivationWaits waits(machine_.meters(), work.waited_for_activations);
  SpanJob& job = *work.job;
  for (Variant& variant : job.variants) {
    variant.places = output_.places(span.output, work.span.block, machine_.device());
    for (const HalfRange& window : windows_of(job.halves, options_.recipe.reconstruct.window)) {
      WindowJob window_job{job, window, &variant};
      for (const auto& stage : adapt_stages_) run_stage(*stage, window_job);
      variant.masks.clear();
    }
    Adapted adapted{output_.assemble_block(span.output, span, variant, machine_.device()),
                    block_report(work.span.block, variant)};
    std::lock_guard lock(adapted_mutex_);
    adapted_[work.span.block] = std::move(adapted);
  }
  work.job.reset();
  boundaries_->expire({Stream::kDense, 2 * work.span.block + 1});  // made again with its block
  boundaries_->forget(
      {Stream::kDense, 2 * work.span.block});  // on disk until the block is recorded
}

void PruneRun::store(GraphSpan& span) {
  if (work_of(span).span.kind != SpanKind::kBlock) return;
  const int block = work_of(span).span.block;
  const Boundary input{Stream::kDense, 2 * block}, next{Stream::kDense, 2 * block + 2};
  std::unique_lock lock(adapted_mutex_);
  auto adapted = adapted_.extract(block);
  lock.unlock();
  if (adapted.empty()) {  // recorded by an earlier process: only the hidden states were missing
    if (!is_unwanted(next)) boundaries_->wait_durable(next);
    boundaries_->expire(input);
    return;
  }
  FileRecord file;
  space_.with_room(options_.output, adapted.mapped().image.size(), [&] {
    const Stopwatch busy(machine_.meters().writes);
    const TraceSlice slice(trace_.get(), Track::kShardWrites, span.name);
    file = output_.write_block(block, adapted.mapped().image);
  });
  machine_.meters().writes.add_bytes(file.bytes);
  // The block's record lets its input go, so what the next block reads must be there first.
  // A file that could not be synced must not go unheard, though its windows were read from memory.
  boundaries_->wait_durable(input);
  if (!is_unwanted(next)) boundaries_->wait_durable(next);
  json& report = adapted.mapped().report;
  report.update(
      waits_report(span.times, work_of(span).waited_for_activations, SpanTimes::Clock::now()));
  space_.with_room(options_.work, 0, [&] { state_->record_block(block, file, report); });
  boundaries_->expire(input);
  progress_.done(block_line(report, int(model_.architecture.num_blocks)));
}

json PruneRun::report_head() const {
  const Device& device = machine_.device();
  const Architecture& architecture = model_.architecture;
  uint64_t parameters = 0;
  for (const SafetensorsHeader& header : model_.checkpoint.headers()) {
    for (const TensorInfo& tensor : header.tensors) parameters += uint64_t(tensor.num_elements());
  }
  const double measured = plan_inputs_->rates.mlp_product_flop;
  const json product_rate = measured > 0 ? json(measured) : json();
  return {{"version", COPPICE_VERSION},
          {"command", options_.command},
          {"model",
           {{"path", options_.model.string()},
            {"architecture", architecture.family},
            {"parameters", parameters},
            {"sha256", sha256_file(model_.checkpoint.index_path())}}},
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
  output_.write_index();
  state_->record_finished();
  boundaries_.reset();
  for (int half = 0; half <= 2 * int(model_.architecture.num_blocks); ++half) {
    fs::remove(options_.work / (to_string({Stream::kDense, half}) + ".h5"));
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
