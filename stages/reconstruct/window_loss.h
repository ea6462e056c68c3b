// A window's output, and how far it is from its target.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <span>

#include "stages/span_job.h"

namespace coppice {

/// The weights of a window, by block: of a half-block window only that half's are there.
using WindowBlocks = std::map<int, BlockWeights>;

/// Runs the halves of the window one after the other, residual streams included.
/// Differentiable in `weights`.
at::Tensor window_output(const SpanJob& span, HalfRange halves, const WindowBlocks& weights,
                         MicroBatch x);

/// Sources of one window's inputs and targets; read by the same indices.
struct WindowData {
  std::unique_ptr<ActivationSource> inputs;
  std::unique_ptr<ActivationSource> targets;

  void announce(std::span<const int> order);
};

/// What enters the window and what its output shall be, by the options' propagation:
///   dense   the dense model's activations, and what the dense model makes of them
///   sparse  those of the adapted prefix, and what the dense window makes of the same
///   mixed   those of the adapted prefix, and the dense model's own activations
WindowData window_data(const SpanJob& span, HalfRange halves, const ReconstructOptions& options);

/// Mean loss (loss.h) over the calibration windows listed, read options.batch_size at a time. No
/// graph. NaN or infinity come back as they are.
double mean_loss(const SpanJob& span, HalfRange halves, const WindowBlocks& weights,
                 WindowData& data, std::span<const int> windows, const ReconstructOptions& options);

}  // namespace coppice
