#include "pipeline/forward_pass.h"

#include <utility>

#include "stages/calibrate.h"

namespace coppice {

ForwardPass::ForwardPass(const SourceModel& model, const TokenWindows& tokens, Machine& machine,
                         std::filesystem::path cache_directory, std::function<void(int)> on_read)
    : model_(model),
      tokens_(tokens),
      machine_(machine),
      spans_(model, tokens),
      compute_(machine.device().compute_dtype(scalar_type(model.architecture.dtype))) {
  CacheOptions cache;
  cache.directory = std::move(cache_directory);
  cache.shape = {tokens.count(), tokens.seqlen, model.architecture.hidden,
                 model.architecture.dtype};
  cache.lengths = tokens.lengths;
  cache.compute = compute_;
  cache.codec_threads = machine.codec_threads();
  user_.device = &machine.device();
  user_.on_read = std::move(on_read);
  boundaries_ =
      std::make_unique<CachedBoundaries>(std::move(cache), machine.engine(), machine.hdf5_thread(),
                                         machine.meters(), [](Boundary, const FileRecord&) {});
  boundaries_->set_unwanted([](Boundary boundary) { return boundary.is_inside_a_block(); });
  machine.device().executor().run([this] {
    rotary_ = make_rotary_table(model_.architecture.rope, model_.architecture.head_dim,
                                tokens_.seqlen, compute_, machine_.device().where());
  });
}

std::vector<ModelSpan> ForwardPass::body() const {
  std::vector<ModelSpan> spans = spans_.embed_spans();
  const std::vector<ModelSpan> blocks = spans_.block_spans();
  spans.insert(spans.end(), blocks.begin(), blocks.end());
  return spans;
}

void ForwardPass::forward(GraphSpan& span) {
  SpanWork& work = work_of(span);
  if (work.span.kind == SpanKind::kEmbed) {
    if (!embedding_) embedding_ = boundaries_->sink({Stream::kDense, 0}, user_);
    embed_windows(span, model_, tokens_, machine_.device(), *embedding_);
    if (work.span.last == tokens_.count()) embedding_.reset();
    return;
  }
  UsersBoundaries boundaries(*boundaries_, user_);
  start_job(span, model_, machine_.device(), rotary_, boundaries, {});
  WindowJob job{*work.job, work.job->halves, nullptr};
  Calibrate({}).run(job);
  work.job.reset();
  boundaries_->expire({Stream::kDense, 2 * work.span.first_block});
}

ActivationSource& ForwardPass::last_hidden() {
  const int last = 2 * int(model_.architecture.num_blocks);
  if (!last_hidden_) last_hidden_ = boundaries_->source({Stream::kDense, last}, user_);
  return *last_hidden_;
}

}  // namespace coppice
