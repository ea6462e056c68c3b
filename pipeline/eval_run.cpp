#include "pipeline/eval_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "configs/errors.h"  // ConfigError
#include "pipeline/forward_pass.h"
#include "pipeline/interrupt.h"
#include "pipeline/run_checks.h"
#include "pipeline/telemetry/process.h"
#include "pipeline/telemetry/trace.h"

namespace coppice {
namespace {

namespace fs = std::filesystem;

// The work directory of an evaluation holds nothing worth keeping.
class ScratchDirectory {
 public:
  explicit ScratchDirectory(fs::path path) : path_(std::move(path)) {
    if (fs::exists(path_) && !fs::is_empty(path_)) {
      throw ConfigError(
          fmt::format("--work-dir: {}: not empty; an evaluation removes its work "
                      "directory, so give it one of its own",
                      path_.string()));
    }
    fs::create_directories(path_);
  }
  ~ScratchDirectory() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

 private:
  fs::path path_;
};

/// Refuses what has no perplexity, before a text is tokenised.
SourceModel open_predictor(const fs::path& directory, const EvalRunOptions& options) {
  SourceModel model = open_model(directory, options.architecture);
  const Architecture& architecture = model.architecture;
  require_next_token(directory, architecture, "it has no perplexity to evaluate");
  if (!architecture.positions.empty() && options.seqlen > architecture.max_positions) {
    throw ConfigError(fmt::format("--seqlen: {}: {} has learned {} positions", options.seqlen,
                                  directory.string(), architecture.max_positions));
  }
  return model;
}

class EvalRun {
 public:
  explicit EvalRun(const EvalRunOptions& options)
      : options_(options),
        progress_(options.verbosity),
        model_(open_predictor(options.model, options)),
        reference_(open_reference()),
        trace_(make_trace(options.trace, [this](const auto& line) { progress_.note(line); })),
        scratch_(options.work),
        tokens_(evaluation_windows({options.text, options.model, options.work / "tokens"},
                                   options.seqlen, options.max_windows, model_.architecture)),
        machine_(
            options.resources, [this](const std::string& line) { progress_.note(line); },
            trace_.get()) {
    pass_ = make_pass(model_, options.work / "model");
    if (reference_) reference_pass_ = make_pass(*reference_, options.work / "reference");
    machine_.device().executor().run([this] {
      head_ = std::make_unique<HeadPass>(tokens_, machine_.device(), *pass_, reference_pass_.get());
    });
  }

  EvalResult execute() {
    choose_spans();
    stream();
    EvalResult result;
    machine_.device().executor().run([&] { result.quality = head_->quality(); });
    result.windows = tokens_.count();
    result.seqlen = tokens_.seqlen;
    result.wall_seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    result.waited_seconds =
        machine_.meters().waits.seconds() + machine_.device().executor().idle_seconds();
    result.peak_rss_bytes = peak_rss_bytes();
    result.device = machine_.device().name() + ", " + machine_.device().description();
    return result;
  }

 private:
  struct PassSpan {
    ForwardPass* pass;
    ModelSpan span;
  };

  std::optional<SourceModel> open_reference() const {
    if (options_.against.empty()) return std::nullopt;
    SourceModel reference = open_predictor(options_.against, options_);
    if (reference.architecture.vocab != model_.architecture.vocab) {
      throw ConfigError(fmt::format(
          "--against: {} has a vocabulary of {} tokens, {} has {}: their predictions cannot be "
          "compared",
          options_.against.string(), reference.architecture.vocab, options_.model.string(),
          model_.architecture.vocab));
    }
    return reference;
  }

  std::unique_ptr<ForwardPass> make_pass(const SourceModel& model, const fs::path& cache) {
    fs::create_directories(cache);
    return std::make_unique<ForwardPass>(model, tokens_, machine_, cache,
                                         [this](int) { progress_.now(at_work_); });
  }

  // The reference's body, the model's body, then chunks of the head, the reference's first.
  void choose_spans() {
    int64_t rows = pass_->spans().head_rows_per_span();
    if (reference_pass_) rows = std::min(rows, reference_pass_->spans().head_rows_per_span());
    for (ForwardPass* pass : {reference_pass_.get(), pass_.get()}) {
      if (pass == nullptr) continue;
      for (const ModelSpan& span : pass->body()) spans_.push_back({pass, span});
    }
    for (const ModelSpan& span : pass_->spans().head_spans(rows)) {
      if (reference_pass_) spans_.push_back({reference_pass_.get(), span});
      spans_.push_back({pass_.get(), span});
    }
  }

  void stream() {
    progress_.expect(int(spans_.size()));
    GraphWork work;
    work.num_spans = int(spans_.size());
    work.plan = [this](GraphSpan& span) {
      const PassSpan& what = spans_[size_t(span.index)];
      plan_span(span, what.pass->spans(), what.span);
      if (what.pass == reference_pass_.get()) span.name = "reference: " + span.name;
    };
    work.forward = [this](GraphSpan& span) { forward(span); };
    uint64_t slot_bytes = pass_->spans().slot_bytes();
    if (reference_pass_) slot_bytes = std::max(slot_bytes, reference_pass_->spans().slot_bytes());
    machine_.read_often(pass_->spans().files());
    if (reference_pass_) machine_.read_often(reference_pass_->spans().files());
    RunSettings settings;
    if (options_.resources.prefetch_blocks > 0) settings.slots = options_.resources.prefetch_blocks;
    BlockGraph graph(machine_.graph_options(options_.resources, settings, slot_bytes, 0),
                     std::move(work), machine_.engine(), machine_.device().executor(),
                     machine_.store_thread());
    const InterruptGuard guard(graph);
    if (graph.run().skipped > 0) throw Interrupted();
  }

  void forward(GraphSpan& span) {
    const Stopwatch busy(machine_.meters().device_busy);
    const PassSpan& what = spans_[size_t(span.index)];
    const bool is_reference = what.pass == reference_pass_.get();
    at_work_ = fmt::format("{}{}", is_reference ? "reference: " : "", what.span.name);
    const TraceSlice slice(trace_.get(), Track::kCompute, at_work_);
    if (what.span.kind != SpanKind::kHead) {
      what.pass->forward(span);
    } else if (is_reference) {
      head_->hold_reference(span);
    } else {
      head_->add(span);
    }
    machine_.device().finish();  // the span's slot is given back
    progress_.done(at_work_);
  }

  const EvalRunOptions& options_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  Progress progress_;
  SourceModel model_;
  std::optional<SourceModel> reference_;
  std::unique_ptr<Trace> trace_;  // null: not wanted
  ScratchDirectory scratch_;
  TokenWindows tokens_;
  Machine machine_;
  std::unique_ptr<ForwardPass> pass_, reference_pass_;  // the latter null without --against
  std::unique_ptr<HeadPass> head_;
  std::vector<PassSpan> spans_;
  std::string at_work_;
};

}  // namespace

EvalResult eval_run(const EvalRunOptions& options) { return EvalRun(options).execute(); }

}  // namespace coppice
