// A micro-batch through a window, and its gradient back.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "stages/reconstruct/window_loss.h"
#include "stages/span_job.h"

namespace coppice {

/// Keeps the activations that SpanJob::kept_activations says, and computes the others again on the
/// way back, half by half, with the operations they were made with: the gradients have the same
/// bits. Span and weights outlive it. One thread.
class WindowPass {
 public:
  WindowPass(const SpanJob& span, HalfRange halves, const WindowBlocks& weights);

  /// The window's output, outside of autograd's graph: no node has kept it, so it may be
  /// overwritten.
  at::Tensor forward(MicroBatch x);
  /// Adds to the gradients of the weights, given that of forward()'s output. Once for each.
  void backward(at::Tensor gradient);

 private:
  const SpanJob& span_;
  const WindowBlocks& weights_;
  std::vector<HalfRange> parts_;      // the last one's activations are kept
  std::vector<MicroBatch> entering_;  // each of them, in turn
  at::Tensor output_;                 // of the last one, with its graph
};

}  // namespace coppice
