#include "pipeline/eval_run.h"

#include <fmt/format.h>

#include <chrono>

#include "configs/errors.h"  // ConfigError
#include "pipeline/graph/cached_activations.h"
#include "pipeline/interrupt.h"
#include "pipeline/machine.h"
#include "pipeline/span_work.h"
#include "pipeline/telemetry/process.h"
#include "stages/calibrate.h"

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

class EvalRun {
 public:
  explicit EvalRun(const EvalRunOptions& options)
      : options_(options),
        model_(open_model(options.model, options.architecture)),
        scratch_(options.work),
        tokens_(evaluation_windows({options.text, options.model, options.work / "tokens"},
                                   options.seqlen, options.max_windows, model_.architecture)),
        progress_(options.verbosity, 0),
        machine_(options.resources, [this](const std::string& line) { progress_.note(line); }),
        planner_(model_, tokens_),
        compute_(machine_.device().compute_dtype(scalar_type(model_.architecture.dtype))),
        last_{Stream::kDense, 2 * int(model_.architecture.num_blocks)} {}

  EvalResult execute() {
    make_boundaries();
    machine_.device().executor().run([this] {
      rotary_ = make_rotary_table(model_.architecture.rope, model_.architecture.head_dim,
                                  tokens_.seqlen, compute_, machine_.device().where());
      head_ = std::make_unique<HeadPass>(model_, tokens_, machine_.device());
    });
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
  void make_boundaries() {
    CacheOptions cache;
    cache.directory = options_.work;
    cache.shape = {tokens_.count(), tokens_.seqlen, model_.architecture.hidden,
                   model_.architecture.dtype};
    cache.compute = compute_;
    cache.device = machine_.device().where();
    cache.on_read = [this](int) { progress_.now(at_work_); };
    boundaries_ = std::make_unique<CachedBoundaries>(
        std::move(cache), machine_.engine(), machine_.meters(), [](Boundary, const FileRecord&) {});
    boundaries_->set_unwanted([](Boundary boundary) { return boundary.half % 2 == 1; });
  }

  void stream() {
    spans_ = planner_.embed_spans();
    for (int block = 0; block < model_.architecture.num_blocks; ++block) {
      spans_.push_back(planner_.block_span(block));
    }
    const std::vector<ModelSpan> head = planner_.head_spans();
    spans_.insert(spans_.end(), head.begin(), head.end());

    GraphWork work;
    work.num_spans = int(spans_.size());
    work.plan = [this](GraphSpan& span) { plan_span(span, planner_, spans_[size_t(span.index)]); };
    work.forward = [this](GraphSpan& span) { forward(span); };
    BlockGraph graph(machine_.graph_options(options_.resources, planner_.slot_bytes(), 0),
                     std::move(work), model_.checkpoint.files(), machine_.engine(),
                     machine_.device().executor(), machine_.store_thread());
    const InterruptGuard guard(graph);
    if (graph.run().skipped > 0) throw Interrupted();
  }

  void forward(GraphSpan& span) {
    const Stopwatch busy(machine_.meters().device_busy);
    const ModelSpan& what = work_of(span).span;
    at_work_ = what.name;
    switch (what.kind) {
      case SpanKind::kEmbed:
        if (!embedding_) embedding_ = boundaries_->sink({Stream::kDense, 0});
        embed_windows(span, model_, tokens_, machine_.device(), *embedding_);
        if (what.last == tokens_.count()) embedding_.reset();
        break;
      case SpanKind::kBlock: {
        start_job(span, model_, machine_.device(), rotary_, *boundaries_, {});
        WindowJob job{*work_of(span).job, work_of(span).job->halves, nullptr};
        Calibrate(Calibrate::Statistics::kNone).run(job);
        work_of(span).job.reset();
        boundaries_->expire({Stream::kDense, 2 * what.block});
        break;
      }
      case SpanKind::kHead: {
        if (!last_hidden_) last_hidden_ = boundaries_->inputs({last_.half, last_.half});
        head_->add(span, *last_hidden_);
        break;
      }
    }
  }

  const EvalRunOptions& options_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  SourceModel model_;
  ScratchDirectory scratch_;
  TokenWindows tokens_;
  Progress progress_;
  Machine machine_;
  ModelSpans planner_;
  at::ScalarType compute_;
  Boundary last_;
  RotaryTable rotary_;
  std::unique_ptr<HeadPass> head_;
  std::unique_ptr<CachedBoundaries> boundaries_;
  std::unique_ptr<ActivationSink> embedding_;      // open while the embedding's spans pass
  std::unique_ptr<ActivationSource> last_hidden_;  // open while the head's spans pass
  std::vector<ModelSpan> spans_;
  std::string at_work_;
};

}  // namespace

EvalResult eval_run(const EvalRunOptions& options) { return EvalRun(options).execute(); }

}  // namespace coppice
