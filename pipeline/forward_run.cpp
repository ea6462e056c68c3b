#include "pipeline/forward_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "configs/errors.h"  // ConfigError
#include "pipeline/interrupt.h"
#include "pipeline/telemetry/process.h"
#include "storage/io/file.h"  // make_directories

namespace coppice {

namespace fs = std::filesystem;

ForwardRun::ForwardRun(const ForwardRunOptions& options, const Check& check,
                       const ReadTokens& read_tokens)
    : options_(options),
      progress_(options.verbosity),
      model_(open(options.model, check)),
      reference_(open_reference(check)),
      trace_(make_trace(options.trace, [this](const auto& line) { progress_.note(line); })),
      scratch_(options.work, "--work-dir"),
      tokens_(read_tokens(options.work / "tokens", model_.architecture)),
      machine_(
          options.resources, [this](const std::string& line) { progress_.note(line); },
          trace_.get(), Devices::kOne, options.device_factory) {
  pass_ = make_pass(model_, "model");
  if (reference_) reference_pass_ = make_pass(*reference_, "reference");
}

SourceModel ForwardRun::open(const fs::path& directory, const Check& check) const {
  SourceModel model = open_model(directory, options_.architecture);
  check(directory, model.architecture);
  return model;
}

std::optional<SourceModel> ForwardRun::open_reference(const Check& check) const {
  if (options_.against.empty()) return std::nullopt;
  SourceModel reference = open(options_.against, check);
  if (reference.architecture.vocab != model_.architecture.vocab) {
    throw ConfigError(fmt::format(
        "--against: {} has a vocabulary of {} tokens, {} has {}: they cannot be compared on the "
        "same tokens",
        options_.against.string(), reference.architecture.vocab, options_.model.string(),
        model_.architecture.vocab));
  }
  return reference;
}

std::unique_ptr<ForwardPass> ForwardRun::make_pass(const SourceModel& model, const char* cache) {
  make_directories(options_.work / cache);
  return std::make_unique<ForwardPass>(model, tokens_, machine_, options_.work / cache,
                                       [this](int) { progress_.now(at_work_); });
}

void ForwardRun::stream(const std::vector<PassSpan>& behind,
                        const std::function<void(const GraphSpan&, bool is_reference)>& add) {
  for (ForwardPass* pass : {reference_pass_.get(), pass_.get()}) {
    if (pass == nullptr) continue;
    for (const ModelSpan& span : pass->body()) spans_.push_back({pass, span});
  }
  spans_.insert(spans_.end(), behind.begin(), behind.end());
  progress_.expect(int(spans_.size()));
  GraphWork work;
  work.num_spans = int(spans_.size());
  work.plan = [this](GraphSpan& span) {
    const PassSpan& what = spans_[size_t(span.index)];
    plan_span(span, what.pass->spans(), what.span);
    if (what.pass == reference_pass_.get()) span.name = "reference: " + span.name;
  };
  work.forward = [this, &add](GraphSpan& span) { forward(span, add); };
  uint64_t slot_bytes = pass_->spans().slot_bytes();
  if (reference_pass_) slot_bytes = std::max(slot_bytes, reference_pass_->spans().slot_bytes());
  machine_.read_often(pass_->spans().files());
  if (reference_pass_) machine_.read_often(reference_pass_->spans().files());
  RunSettings settings;
  if (options_.resources.prefetch_blocks > 0) settings.slots = options_.resources.prefetch_blocks;
  BlockGraph graph(machine_.graph_options(options_.resources, settings, slot_bytes, 0),
                   std::move(work), machine_.engine(), {{machine_.device().executor()}},
                   machine_.store_thread());
  const InterruptGuard guard(graph);
  if (graph.run().skipped > 0) throw Interrupted();
}

void ForwardRun::forward(GraphSpan& span,
                         const std::function<void(const GraphSpan&, bool is_reference)>& add) {
  const Stopwatch busy(machine_.meters().device_busy);
  const PassSpan& what = spans_[size_t(span.index)];
  const bool is_reference = what.pass == reference_pass_.get();
  at_work_ = fmt::format("{}{}", is_reference ? "reference: " : "", what.span.name);
  const TraceSlice slice(trace_.get(), Track::kCompute, at_work_);
  if (what.span.kind == SpanKind::kHead) {
    add(span, is_reference);
  } else {
    what.pass->forward(span);
  }
  machine_.device().finish();  // the span's slot is given back
  progress_.done(at_work_);
}

ForwardRunTotals ForwardRun::totals() {
  ForwardRunTotals totals;
  totals.wall_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  totals.waited_seconds =
      machine_.meters().waits.seconds() + machine_.device().executor().idle_seconds();
  totals.peak_rss_bytes = peak_rss_bytes();
  totals.device = machine_.device().name() + ", " + machine_.device().description();
  return totals;
}

}  // namespace coppice
