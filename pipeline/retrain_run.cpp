#include "pipeline/retrain_run.h"

#include <ATen/ops/from_blob.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>
#include <optional>

#include "configs/errors.h"  // ConfigError
#include "pipeline/heap.h"
#include "pipeline/interrupt.h"
#include "pipeline/output_directory.h"
#include "pipeline/resident_tensors.h"
#include "pipeline/retrain_budget.h"
#include "pipeline/retrain_state.h"
#include "pipeline/run_checks.h"
#include "pipeline/telemetry/json_text.h"
#include "pipeline/telemetry/model_card.h"
#include "pipeline/telemetry/process.h"
#include "pipeline/telemetry/retrain_report.h"
#include "pipeline/telemetry/run_report.h"
#include "pipeline/token_windows.h"
#include "stages/finite.h"  // require_finite
#include "storage/io/aligned_buffer.h"
#include "storage/io/file.h"  // make_directories, hash_file

namespace coppice {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Clock = std::chrono::steady_clock;

// Raised whenever the same options would give other bytes than before.
constexpr int kNumericsVersion = 2;

constexpr double kHeapShare = 1.05;  // of the memory planned; see prune_run.cpp

constexpr const char* kCardFile = "README.md";
constexpr const char* kReportFile = "coppice_report.json";

constexpr int64_t kMostLines = 50;  // that a log gets of the steps of one run

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The windows after the first `skipped`, whose number is among `nsamples` until here.
TokenWindows without_first(TokenWindows tokens, int skipped) {
  tokens.ids.erase(tokens.ids.begin(), tokens.ids.begin() + skipped * tokens.seqlen);
  return tokens;
}

TokenWindows training_text(const RetrainRunOptions& options, const Architecture& architecture) {
  require_next_token(options.model, architecture, "there is nothing to retrain it on");
  check_positions(architecture, options.calibration.seqlen);
  CalibrationOptions wanted = options.calibration;
  wanted.nsamples += options.first_window;
  return without_first(
      calibration_windows({options.dataset, options.model, options.work / "tokens"}, wanted,
                          architecture),
      options.first_window);
}

class RetrainRun {
 public:
  explicit RetrainRun(const RetrainRunOptions& options);
  RunResult execute();

 private:
  Fingerprint fingerprint() const;
  void load();
  void start_trainer();
  bool train();
  void tell(int64_t step_before, size_t evaluations_before);
  json write_blocks();
  json finish();
  void write_beside(const json& report) const;
  bool mend_output() const;
  void remove_scratch();
  json report_head() const;
  double trained_seconds() const { return state_->seconds() + seconds_; }

  const RetrainRunOptions& options_;
  Clock::time_point start_ = Clock::now();
  Progress progress_;
  SourceModel model_;
  std::unique_ptr<Device> device_;
  OutputDirectory output_;
  RetrainBudget budget_;
  TokenWindows tokens_;
  std::unique_ptr<RetrainState> state_;
  ResidentModel resident_;
  std::unique_ptr<Retrainer> trainer_;
  ZeroCount zeros_;
  bool is_resumed_ = false;
  double seconds_ = 0;  // since the last save
  Clock::time_point last_save_;
};

SourceModel open_pruned(const RetrainRunOptions& options) {
  SourceModel model = open_model(options.model, options.architecture);
  if (!model.architecture.scale_block.is_there()) return model;
  throw ConfigError(fmt::format(
      "--model: {}: FP8 weights are not retrained; coppice run prunes them and writes bf16",
      options.model.string()));
}

// What does not fit is refused before anything is made, tokenised or read.
RetrainRun::RetrainRun(const RetrainRunOptions& options)
    : options_(options),
      progress_(options.verbosity),
      model_(open_pruned(options)),
      device_(make_device({options.resources.device, options.resources.compute_dtype,
                           options.resources.threads, options.resources.vram_budget_bytes})),
      output_(options.output, model_),
      budget_(retrain_budget(model_, output_, options.retrain, options.calibration.seqlen,
                             options.resources, *device_,
                             int64_t{options.calibration.nsamples} + options.first_window)),
      tokens_((require_resumable(options.work, options.resume, options.resume_command),
               check_output_directory(options.output, options.work, options.model),
               require_fits(budget_), training_text(options, model_.architecture))) {}

Fingerprint RetrainRun::fingerprint() const {
  Fingerprint print = fingerprint_checkpoint(model_.checkpoint);
  if (!options_.architecture.empty()) {
    print["architecture"] = hash_file(options_.architecture).xxh3_128;
  }
  const json recipe = retrain_recipe(options_.retrain);
  for (const auto& [key, value] : recipe.items()) {
    print["retrain." + key] = value.dump();
  }
  print["calibration.seqlen"] = std::to_string(tokens_.seqlen);
  print["calibration.first_window"] = std::to_string(options_.first_window);
  print["calibration.nsamples"] = std::to_string(tokens_.count());
  print["calibration.tokens"] = tokens_.xxh3_128;
  print["numerics"] =
      fmt::format("retrain version={} torch={} {} compute={}", kNumericsVersion, TORCH_VERSION,
                  device_->numerics(),
                  c10::toString(device_->compute_dtype(scalar_type(model_.architecture.dtype))));
  return print;
}

void RetrainRun::load() {
  resident_ = read_model(model_, *device_);
  zeros_ = count_zeros(model_.architecture,
                       [this](const std::string& name) { return resident_.tensors.at(name); });
  if (zeros_.zeros == 0) {
    throw ConfigError(fmt::format(
        "--model: {}: none of the {} weights of its {} linears is zero: retraining keeps the zeros "
        "of a pruned model; prune it first with coppice run",
        options_.model.string(), zeros_.weights, zeros_.matrices));
  }
  if (options_.verbosity != Verbosity::kQuiet) {
    progress_.note(
        fmt::format("{:.2f} % zeros in {} matrices stay; adapters of rank {} beside each",
                    100 * zeros_.share(), zeros_.matrices, options_.retrain.rank));
  }
}

void RetrainRun::start_trainer() {
  const at::Tensor ids = at::from_blob(tokens_.ids.data(), {tokens_.count(), tokens_.seqlen},
                                       at::TensorOptions(at::kInt));
  trainer_ =
      std::make_unique<Retrainer>(resident_, ids.to(device_->where(), at::kLong), options_.retrain);
  is_resumed_ = state_->has_saved();
  if (is_resumed_) state_->restore(*trainer_);
}

// One line for as many steps as keep a log short, and one for every evaluation.
void RetrainRun::tell(int64_t step_before, size_t evaluations_before) {
  const RetrainProgress& now = trainer_->progress();
  const int64_t steps = trainer_->num_steps();
  const int64_t lines = std::min(steps, kMostLines);
  if (now.step * lines / steps != step_before * lines / steps) {
    progress_.done(fmt::format("step {}/{}: loss {:.4f}", now.step, steps, now.step_loss));
  }
  if (now.validations.size() == evaluations_before) return;
  const double held_out = now.validations.back();
  progress_.done(fmt::format(
      "{}: held-out loss {:.4f} (perplexity {:.2f})",
      evaluations_before == 0
          ? "pruned model"
          : fmt::format("epoch {}/{}", evaluations_before, options_.retrain.training.epochs),
      held_out, std::exp(held_out)));
}

// False: a signal came, and the state is saved.
bool RetrainRun::train() {
  const auto stop = [] { return InterruptGuard::requested(); };
  const int64_t steps = trainer_->num_steps();
  const int64_t lines = std::min(steps, kMostLines);
  const RetrainProgress& at = trainer_->progress();
  progress_.expect(int(lines - at.step * lines / steps) + options_.retrain.training.epochs + 1 -
                   int(at.validations.size()));
  last_save_ = Clock::now();
  while (!trainer_->is_finished() && !stop()) {
    const int64_t step = at.step;
    const size_t evaluations = at.validations.size();
    progress_.now(trainer_->is_evaluation_due()
                      ? "evaluating on the held-out windows"
                      : fmt::format("step {}/{}: loss {:.4f}", step, steps, at.step_loss));
    const Clock::time_point begin = Clock::now();
    trainer_->advance(stop);
    seconds_ += seconds_since(begin);
    tell(step, evaluations);
    if (at.validations.size() > evaluations ||
        seconds_since(last_save_) >= 60 * options_.save_minutes) {
      state_->save(*trainer_, trained_seconds());
      seconds_ = 0;
      last_save_ = Clock::now();
    }
  }
  state_->save(*trainer_, trained_seconds());
  seconds_ = 0;
  return trainer_->is_finished();
}

// The shards of the blocks, and what became of their zeros.
json RetrainRun::write_blocks() {
  AlignedBuffer memory(output_.largest_image_bytes());
  json blocks = json::array();
  for (int block = 0; block < model_.architecture.num_blocks; ++block) {
    const NamedTensors result = trainer_->result(block);
    for (const auto& [name, tensor] : result) require_finite(name, tensor);
    blocks.push_back(retrained_block(model_.architecture, block, resident_.tensors, result));
    const std::span<const std::byte> image = output_.assemble_block(
        memory.span(), block, *device_, [&](const std::string& name) { return result.at(name); });
    device_->downloads()();
    output_.write_block(block, image);
  }
  return blocks;
}

json RetrainRun::report_head() const {
  return {{"version", COPPICE_VERSION},
          {"command", options_.command},
          {"model", model_report(model_)},
          {"machine",
           {{"device", device_->name()},
            {"description", device_->description()},
            {"compute_dtype", c10::toString(resident_.compute)}}},
          {"recipe", {{"retrain", retrain_recipe(options_.retrain)}}},
          {"calibration",
           {{"nsamples", tokens_.count()},
            {"first_window", options_.first_window},
            {"seqlen", tokens_.seqlen},
            {"tokens", tokens_.ids.size()},
            {"dataset_sha256", tokens_.dataset_sha256}}}};
}

// Everything but the index first: the directory loads the moment it is complete.
json RetrainRun::finish() {
  make_directories(options_.output);
  const UniqueFd lock = lock_output(options_.output, {options_.work}, state_->is_output_begun());
  remove_unfinished(options_.output);
  output_.write_outer();
  json report = report_head();
  device_->executor().run([&] { report["blocks"] = write_blocks(); });
  report["retrain"] = retrain_report(trainer_->progress(), options_.retrain.training,
                                     trainer_->num_steps(), zeros_, report["blocks"]);
  report["retrain"]["seconds"] = trained_seconds();
  report["totals"] = {{"wall_seconds", seconds_since(start_)},
                      {"peak_rss_bytes", peak_rss_bytes()},
                      {"planned_ram_bytes", budget_.ram.bytes()},
                      {"resumed", is_resumed_}};
  write_file(options_.work / kReportFile, json_text(report, 2) + "\n");
  write_beside(report);
  output_.write_index();
  state_->record_finished(output_.side_file_names());
  remove_scratch();
  return report;
}

// What lies beside the shards.
void RetrainRun::write_beside(const json& report) const {
  output_.copy_side_files();
  const fs::path base_card = options_.model / kCardFile;
  write_file(options_.output / kCardFile,
             retrained_card(report, fs::exists(base_card) ? read_file(base_card) : ""));
  write_file(options_.output / kReportFile, json_text(report, 2) + "\n");
}

// Of a finished run somebody may have removed what it made: what lies beside the shards is written
// again. False: shards are missing, which want the training again.
bool RetrainRun::mend_output() const {
  const fs::path report = options_.work / kReportFile;
  if (!output_.opens() || !fs::exists(report)) return false;
  std::vector<std::string> names = state_->side_files();
  names.insert(names.end(), {kCardFile, kReportFile});
  const bool is_whole = std::all_of(names.begin(), names.end(), [this](const std::string& name) {
    return fs::exists(options_.output / name);
  });
  if (!is_whole) write_beside(json::parse(read_file(report)));
  return true;
}

void RetrainRun::remove_scratch() {
  state_->remove_saved();
  std::error_code ignored;
  fs::remove_all(options_.work / "tokens", ignored);
}

RunResult RetrainRun::execute() {
  const uint64_t planned = budget_.ram.bytes();
  limit_heap(std::min(budget_.ram.limit, uint64_t(kHeapShare * double(planned))),
             output_.largest_image_bytes());
  device_->executor().run([this] { load(); });  // what is refused there leaves no journal behind
  state_ = std::make_unique<RetrainState>(options_.work, options_.output, fingerprint(),
                                          options_.resume, options_.resume_command);
  const InterruptGuard guard;  // from here on there is something to continue
  if (state_->is_finished()) {
    if (mend_output()) {
      remove_scratch();
      return {RunOutcome::kAlreadyFinished, {}};
    }
    state_->record_reopened();
  }
  remove_unfinished(options_.work);
  bool is_trained = false;
  device_->executor().run([&] {
    start_trainer();
    is_trained = train();
  });
  if (!is_trained) return {RunOutcome::kInterrupted, {}};
  return {RunOutcome::kFinished, finish()};
}

}  // namespace

RunResult retrain_run(const RetrainRunOptions& options) { return RetrainRun(options).execute(); }

}  // namespace coppice
