// A model streamed forward only: embedding and blocks as spans, hidden states through a cache.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pipeline/graph/cached_activations.h"
#include "pipeline/machine.h"
#include "pipeline/model_spans.h"
#include "pipeline/span_work.h"

namespace coppice {

class ForwardPass {
 public:
  /// Keeps hidden states below `cache_directory`, which must exist. `on_read` is told on the
  /// device's thread how many windows were handed out. References outlive the pass.
  ForwardPass(const SourceModel& model, const TokenWindows& tokens, Machine& machine,
              std::filesystem::path cache_directory, std::function<void(int)> on_read);

  const SourceModel& model() const { return model_; }
  const ModelSpans& spans() const { return spans_; }
  at::ScalarType compute_dtype() const { return compute_; }

  /// Embedding, then blocks.
  std::vector<ModelSpan> body() const;

  /// The forward of one span of body(). On the device's thread.
  void forward(GraphSpan& span);

  /// What the last block gave, for the head. On the device's thread, after body().
  ActivationSource& last_hidden();

 private:
  const SourceModel& model_;
  const TokenWindows& tokens_;
  Machine& machine_;
  ModelSpans spans_;
  at::ScalarType compute_;
  RotaryTable rotary_;
  CacheUser user_;
  std::unique_ptr<CachedBoundaries> boundaries_;
  std::unique_ptr<ActivationSink> embedding_;      // open while the embedding's spans pass
  std::unique_ptr<ActivationSource> last_hidden_;  // open while the head's spans pass
};

}  // namespace coppice
