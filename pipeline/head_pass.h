// The head of an evaluation: every chunk of vocabulary rows against every window's last hidden
// state.
#pragma once

#include <memory>
#include <vector>

#include "pipeline/span_work.h"
#include "stages/model/head.h"

namespace coppice {

struct Quality {
  double perplexity = 0;
  double nll = 0;      // mean over predicted tokens, nats
  int64_t tokens = 0;  // predicted
};

/// Used by the device's thread. 12 bytes a token are held between chunks.
class HeadPass {
 public:
  HeadPass(const SourceModel& model, const TokenWindows& tokens, const Device& device);

  /// Adds one kHead span. `last_hidden` are the model's last block outputs.
  void add(const GraphSpan& span, ActivationSource& last_hidden);

  /// Each window predicts its own seqlen − 1 tokens; exp of the mean over all of them.
  Quality quality() const;

 private:
  const SourceModel& model_;
  const TokenWindows& tokens_;
  const Device& device_;
  std::unique_ptr<RunningLogSumExp> sums_;
};

}  // namespace coppice
