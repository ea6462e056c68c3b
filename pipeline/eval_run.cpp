#include "pipeline/eval_run.h"

#include <fmt/format.h>

#include <algorithm>

#include "configs/errors.h"  // ConfigError
#include "pipeline/run_checks.h"

namespace coppice {
namespace {

namespace fs = std::filesystem;

/// Refuses what has no perplexity, before a text is tokenised.
void require_predictor(const fs::path& directory, const Architecture& architecture,
                       int64_t seqlen) {
  require_next_token(directory, architecture,
                     "it has no perplexity to evaluate; --task stsb compares an encoder's "
                     "embeddings");
  if (!architecture.positions.empty() && seqlen > architecture.max_positions) {
    throw ConfigError(fmt::format("--seqlen: {}: {} has learned {} positions", seqlen,
                                  directory.string(), architecture.max_positions));
  }
}

// Chunks of the head, the reference's first.
std::vector<ForwardRun::PassSpan> head_spans(ForwardRun& run) {
  int64_t rows = run.model().spans().head_rows_per_span();
  if (run.reference()) rows = std::min(rows, run.reference()->spans().head_rows_per_span());
  std::vector<ForwardRun::PassSpan> spans;
  for (const ModelSpan& span : run.model().spans().head_spans(rows)) {
    if (run.reference()) spans.push_back({run.reference(), span});
    spans.push_back({&run.model(), span});
  }
  return spans;
}

}  // namespace

EvalResult eval_run(const EvalRunOptions& options) {
  ForwardRun run(
      options,
      [&](const fs::path& directory, const Architecture& architecture) {
        require_predictor(directory, architecture, options.seqlen);
      },
      [&](const fs::path& cache, const Architecture& architecture) {
        return evaluation_windows({options.text, options.model, cache}, options.seqlen,
                                  options.max_windows, architecture);
      });
  std::unique_ptr<HeadPass> head;
  run.on_device([&] {
    head = std::make_unique<HeadPass>(run.tokens(), run.device(), run.model(), run.reference());
  });
  run.stream(head_spans(run), [&](const GraphSpan& span, bool is_reference) {
    is_reference ? head->hold_reference(span) : head->add(span);
  });
  EvalResult result;
  run.on_device([&] {
    result.quality = head->quality();
    head.reset();
  });
  result.windows = run.tokens().count();
  result.seqlen = run.tokens().seqlen;
  result.totals = run.totals();
  return result;
}

}  // namespace coppice
