// A window's output, and how far it is from its target.
#pragma once

#include <ATen/core/Tensor.h>

#include <span>

#include "stages/span_job.h"

namespace coppice {

/// Runs the halves of the window one after the other, residual streams included.
/// Differentiable in `weights`.
at::Tensor window_output(const SpanJob& span, HalfRange halves, const BlockWeights& weights,
                         MicroBatch x);

/// Sources of one window's inputs and targets; read by the same indices.
struct WindowData {
  std::unique_ptr<ActivationSource> inputs;
  std::unique_ptr<ActivationSource> targets;

  void announce(std::span<const int> order);
};

/// Mean loss (loss.h) over the calibration windows listed, read options.batch_size at a time. No
/// graph. NaN or infinity come back as they are.
double mean_loss(const SpanJob& span, HalfRange halves, const BlockWeights& weights,
                 WindowData& data, std::span<const int> windows, const ReconstructOptions& options);

}  // namespace coppice
