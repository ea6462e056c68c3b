#include "pipeline/prune_run.h"

#include <fmt/format.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>

#include "configs/errors.h"   // ConfigError
#include "pipeline/errors.h"  // exit_code, BudgetError
#include "pipeline/finish_run.h"
#include "pipeline/heap.h"
#include "pipeline/interrupt.h"
#include "pipeline/machine.h"
#include "pipeline/prune_pass.h"
#include "pipeline/run_checks.h"
#include "pipeline/space_guard.h"
#include "pipeline/survey_pass.h"
#include "pipeline/telemetry/process.h"
#include "pipeline/telemetry/trace.h"
#include "pipeline/token_windows.h"
#include "pipeline/unit_saliency_pass.h"
#include "pipeline/unit_trials_run.h"
#include "stages/layer_similarity.h"  // removed_blocks
#include "stages/units/slice.h"
#include "storage/io/file.h"  // make_directories, hash_file

namespace coppice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Raised whenever the same recipe would give other bytes, or other records, than before.
constexpr int kNumericsVersion = 6;

// Of the memory planned: what one stage freed in small pieces the next cannot use in large ones,
// and giving pages back at once would have every stage touch new ones.
constexpr double kHeapShare = 1.05;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class PruneRun {
 public:
  explicit PruneRun(const PruneRunOptions& options);
  RunResult execute();
  /// Throws what a run that has not started would be refused by.
  void require_possible() {
    if (!fs::exists(options_.work / "journal.bin")) {
      make_plan(all_work(model_.architecture, options_.job()));
    }
  }

 private:
  Fingerprint fingerprint() const;
  void make_plan(const WorkLeft& left);
  WorkLeft work_left() const;
  bool has_outputs() const;
  bool nothing_is_left();
  void copy_outer(const WorkLeft& left);
  void limit_heap_to_plan() const;
  bool score_units(PassContext& context);
  bool survey(PassContext& context);
  RunTotals totals(const PassContext& context) const;

  const PruneRunOptions& options_;
  Clock::time_point start_ = Clock::now();
  Clock::time_point stream_start_;
  Progress progress_;
  SourceModel model_;
  std::unique_ptr<Trace> trace_;  // null: not wanted
  TokenWindows tokens_;
  std::unique_ptr<MaskSource> masks_;  // null: scores decide
  Machine machine_;
  ModelSpans planner_;
  std::vector<RecipeOutput> outputs_;  // by recipe
  SpaceGuard space_;
  at::ScalarType compute_;
  std::unique_ptr<RunState> state_;
  std::vector<SurveyedRecipe> recipes_;  // what is run, once nothing is open
  std::optional<PlanInputs> plan_inputs_;
  RunPlan plan_;
  NamedTensors unit_scores_;  // empty: no recipe asks for them
};

PruneRun::PruneRun(const PruneRunOptions& options)
    : options_(options),
      progress_(options.verbosity),
      model_(open_source(options)),
      trace_((require_resumable(options.work, options.resume, options.resume_command),
              check_output_directory(options.output, options.work, options.model, options.trace),
              make_trace(options.trace, [this](const auto& line) { progress_.note(line); }))),
      tokens_(calibration_windows({options.dataset, options.model, options.work / "tokens"},
                                  options.shared().calibration, model_.architecture)),
      masks_(open_masks(options.shared().prune)),
      machine_(
          options.shared().resources, [this](const std::string& line) { progress_.note(line); },
          trace_.get(), devices_for(options), options.device_factory),
      planner_(model_, tokens_, blocks_per_span(options.job().recipes), masks_.get()),
      space_({.patience = std::chrono::seconds(options.shared().resources.disk_wait_seconds),
              .note = [this](const std::string& line) { progress_.note(line); },
              .stopped = InterruptGuard::requested}),
      compute_(machine_.device().compute_dtype(scalar_type(model_.architecture.dtype))) {
  for (const NamedRecipe& named : options.recipes) {
    check_against_model(named.recipe, model_.architecture, tokens_);
    const bool reconstructs = named.recipe.reconstruct.window.kind != WindowKind::kNone;
    if (reconstructs || options.sweep) check_held_out(tokens_);
    const fs::path directory = named.name.empty() ? options.output : options.output / named.name;
    const PruneOptions& prune = named.recipe.prune;
    OutputDirectory output =
        prune.is_sliced
            ? OutputDirectory(directory, model_, sliced_architecture(model_.architecture, prune))
            : OutputDirectory(directory, model_);
    outputs_.push_back(
        {named.name, std::move(output), !options.sweep || options.sweep->writes_checkpoints});
  }
  if (masks_) masks_->check(model_.architecture);
}

Fingerprint PruneRun::fingerprint() const {
  Fingerprint print = fingerprint_checkpoint(model_.checkpoint);
  if (masks_) print["masks"] = fingerprint_shards(masks_->checkpoint());
  if (!options_.architecture.empty()) {
    print["architecture"] = hash_file(options_.architecture).xxh3_128;
  }
  for (const NamedRecipe& named : options_.recipes) {
    for (const RecipeKey& key : recipe_keys()) {
      const std::string prefix = named.name.empty() ? "" : named.name + ": ";
      if (key.changes_output) print[prefix + "recipe." + key.path()] = key.get(named.recipe);
    }
  }
  if (options_.sweep) {
    for (const NamedRecipe& named : options_.recipes) print["recipes"] += named.name + " ";
    print["checkpoints"] = options_.sweep->writes_checkpoints ? "written" : "not written";
  }
  print["calibration.tokens"] = tokens_.xxh3_128;
  // Everything else that changes bits: instruction set, threads inside an operation, libraries.
  print["numerics"] =
      fmt::format("version={} torch={} {} compute={}", kNumericsVersion, TORCH_VERSION,
                  machine_.device().numerics(), c10::toString(compute_));
  return print;
}

// ---- the plan -----------------------------------------------------------------------------------

WorkLeft PruneRun::work_left() const {
  WorkLeft left;
  left.outer_copies = 0;
  std::vector<bool> is_left(size_t(model_.architecture.num_blocks));
  for (size_t recipe = 0; recipe < outputs_.size(); ++recipe) {
    left.outer_copies += outputs_[recipe].is_written && !state_->has_outer(recipe);
    for (size_t block = 0; block < is_left.size(); ++block) {
      is_left[block] = is_left[block] || !state_->has_block(recipe, int(block));
    }
  }
  for (size_t block = 0; block < is_left.size(); ++block) {
    if (is_left[block]) left.blocks.push_back(int(block));
  }
  for (const fs::directory_entry& entry : fs::directory_iterator(options_.work)) {
    if (entry.path().extension() == ".h5") left.scratch_bytes += entry.file_size();
  }
  left.scores_units = wants_unit_saliency(options_.job().recipes) && !state_->has_unit_scores();
  return left;
}

// Of a finished run somebody may have removed what it made: then that is made again.
bool PruneRun::has_outputs() const {
  for (size_t recipe = 0; recipe < outputs_.size(); ++recipe) {
    if (!outputs_[recipe].is_written) continue;
    if (!state_->has_outer(recipe)) return false;
    for (int block = 0; block < model_.architecture.num_blocks; ++block) {
      if (!state_->has_block(recipe, block)) return false;
    }
  }
  return has_finished_files(options_, outputs_, state_->side_files());
}

// False: the run is open, if need be again.
bool PruneRun::nothing_is_left() {
  if (!state_->is_finished()) return false;
  if (!has_outputs()) {
    state_->record_reopened();
    return false;
  }
  remove_scratch(options_.work);  // of a process that was killed behind its last record
  return true;
}

// What does not fit is refused before anything is measured, made or read.
void PruneRun::make_plan(const WorkLeft& left) {
  plan_inputs_.emplace(plan_inputs(model_, options_.job(), planner_, tokens_.count(), machine_,
                                   outputs_.front().directory, options_.work, left));
  plan_ = plan_run(*plan_inputs_);
}

// ---- the work -----------------------------------------------------------------------------------

void PruneRun::copy_outer(const WorkLeft& left) {
  for (size_t recipe = 0; recipe < outputs_.size(); ++recipe) {
    const RecipeOutput& output = outputs_[recipe];
    if (!output.is_written || state_->has_outer(recipe)) continue;
    const TraceSlice slice(trace_.get(), Track::kShardWrites, "outside the blocks");
    FileRecord file;
    space_.with_room(output.directory.path(), 0,
                     [&] { make_directories(output.directory.path()); });
    space_.with_room(options_.output, plan_inputs_->outer_bytes / uint64_t(left.outer_copies),
                     [&] { file = output.directory.write_outer(); });
    machine_.meters().reads.add_bytes(file.bytes);
    machine_.meters().writes.add_bytes(file.bytes);
    space_.with_room(options_.work, 0, [&] { state_->record_outer(recipe, file); });
  }
}

void PruneRun::limit_heap_to_plan() const {
  limit_heap(std::min(plan_.ram.limit, uint64_t(kHeapShare * double(plan_.ram.bytes()))),
             plan_.mapped_bytes);
}

// What ranks units by the loss wants the whole model, before anything streams. False: interrupted.
bool PruneRun::score_units(PassContext& context) {
  if (!wants_unit_saliency(options_.job().recipes)) return true;
  std::optional<NamedTensors> scores = unit_saliency_pass(context);
  if (!scores) return false;
  limit_heap_to_plan();
  unit_scores_ = std::move(*scores);
  context.unit_scores = &unit_scores_;
  return !InterruptGuard::requested();  // in its last window
}

// Closes what the recipes leave open. False: interrupted.
bool PruneRun::survey(PassContext& context) {
  const std::vector<Recipe> recipes = options_.job().recipes;
  if (std::any_of(recipes.begin(), recipes.end(), is_open)) {
    if (!SurveyPass(context, recipes, outputs_.front().directory).run()) return false;
    if (InterruptGuard::requested()) return false;  // in its last span
  }
  recipes_ = close_recipes(recipes, state_->surveys(), model_.architecture);
  for (size_t recipe = 0; recipe < recipes_.size(); ++recipe) {
    const PruneOptions& prune = recipes_[recipe].recipe.prune;
    if (prune.is_sliced) outputs_[recipe].directory.cut_out(removed_blocks(prune));
  }
  return true;
}

RunResult PruneRun::execute() {
  require_possible();
  std::vector<fs::path> directories;
  directories.reserve(outputs_.size());
  for (const RecipeOutput& output : outputs_) directories.push_back(output.directory.path());
  state_ = std::make_unique<RunState>(options_.work, directories, fingerprint(), options_.resume,
                                      options_.resume_command);
  const InterruptGuard guard;  // from here on there is something to continue
  if (nothing_is_left()) return {RunOutcome::kAlreadyFinished, {}};
  make_directories(options_.output);
  const UniqueFd lock =
      lock_output(options_.output, {options_.work, options_.trace}, state_->is_resumed());
  remove_unfinished(options_.work);
  for (const fs::path& directory : directories) {
    if (fs::exists(directory)) remove_unfinished(directory);
  }
  const WorkLeft left = work_left();
  // A new run has its plan: a second one, of some pages more, could refuse what has begun.
  if (!plan_inputs_) make_plan(left);
  measure_rates(model_, machine_, options_.work, plan_, *plan_inputs_);
  plan_ = plan_run(*plan_inputs_);
  limit_heap_to_plan();
  stream_start_ = Clock::now();
  copy_outer(left);
  if (InterruptGuard::requested()) return {RunOutcome::kInterrupted, {}};
  machine_.read_often(planner_.files());
  const uint64_t shard_bytes =
      outputs_.front().directory.largest_image_bytes(planner_.blocks_per_span());
  PassContext context{model_,
                      tokens_,
                      planner_,
                      masks_.get(),
                      machine_,
                      space_,
                      progress_,
                      trace_.get(),
                      *state_,
                      plan_,
                      compute_,
                      options_.shared().resources,
                      options_.work,
                      shard_bytes * uint64_t(std::max(1, options_.job().num_written)),
                      {}};
  if (!score_units(context)) return {RunOutcome::kInterrupted, {}};
  if (!survey(context)) return {RunOutcome::kInterrupted, {}};
  std::vector<Recipe> recipes;
  recipes.reserve(recipes_.size());
  for (const SurveyedRecipe& closed : recipes_) recipes.push_back(closed.recipe);
  const auto judge = options_.sweep ? PrunePass::Judge::kYes : PrunePass::Judge::kNo;
  if (!PrunePass(context, std::move(recipes), outputs_, judge).run()) {
    return {RunOutcome::kInterrupted, {}};
  }
  // A signal in the last block ends no work, but a wait for room, and who runs trials asks for it.
  return {RunOutcome::kFinished,
          finish_run({context, options_, outputs_, recipes_, *plan_inputs_, totals(context)})};
}

RunTotals PruneRun::totals(const PassContext& context) const {
  RunTotals totals;
  totals.wall_seconds = seconds_since(start_);
  totals.device_idle_seconds = machine_.idle_seconds();
  totals.peak_device_bytes = machine_.peak_device_bytes();
  totals.resumed = state_->is_resumed();
  totals.stages = context.stage_totals;
  totals.streamed_seconds = seconds_since(stream_start_);
  return totals;
}

/// A signal that comes while room is waited for ends a run as one between two blocks does.
RunResult execute(const PruneRunOptions& options) {
  try {
    return PruneRun(options).execute();
  } catch (const std::exception& error) {
    if (exit_code(error) != kInterruptedCode) throw;
    return {RunOutcome::kInterrupted, {}};
  }
}

/// Null: none.
std::exception_ptr refusal_of(const PruneRunOptions& options) {
  try {
    PruneRun(options).require_possible();
    return nullptr;
  } catch (const BudgetError&) {
    return std::current_exception();
  }
}

}  // namespace

RunResult prune_run(const PruneRunOptions& options) {
  const std::optional<UnitTrialsRun> trials = unit_trials_run(options);
  if (!trials) return execute(options);
  // What comes behind hours of trials is refused before them, and before they make anything.
  const std::exception_ptr of_run = refusal_of(options);
  const std::exception_ptr refusal = with_trials(refusal_of(trials->options), of_run);
  if (refusal) std::rethrow_exception(refusal);
  release_free_memory();
  const uint64_t process_bytes = resident_bytes();  // what trials leave behind is none of it
  const InterruptGuard guard;                       // trials are there to be continued behind
  const RunResult measured = execute(trials->options);
  const bool is_interrupted =
      measured.outcome == RunOutcome::kInterrupted || InterruptGuard::requested();
  if (is_interrupted) return {RunOutcome::kInterrupted, {}};
  PruneRunOptions closed = closed_by_trials(options, *trials);
  closed.process_bytes = process_bytes;
  release_free_memory();  // each is held to its own plan
  forget_peak_rss();
  return execute(closed);
}

}  // namespace coppice
