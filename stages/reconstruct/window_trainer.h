// Fits and trains one window, and keeps the best state it has seen.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "stages/reconstruct/keep_best.h"
#include "stages/reconstruct/window_loss.h"
#include "stages/reconstruct/window_weights.h"
#include "stages/span_job.h"

namespace coppice {

/// See Reconstruct. Where libtorch says that the device is out of memory, a batch is from then on
/// worked on in two micro-batches, and the report says so; the second time c10::OutOfMemoryError is
/// let through. `name` seeds the shuffle ("model.layers.3.attention"). One thread.
class WindowTrainer {
 public:
  /// Throws std::invalid_argument if there are fewer than two calibration windows.
  WindowTrainer(SpanJob& span, HalfRange halves, Variant& variant,
                const ReconstructOptions& options, std::string name);

  /// Leaves the best values in the variant's adapted tensors, as they are to be written, and names
  /// them as trained; the pruned weights where nothing is better. Fills losses, steps, rate,
  /// retries, kept and fallback of the report.
  void run(WindowReport& report);

 private:
  /// What one run over all epochs at one rate came to.
  struct Attempt {
    bool is_finite = true;
    int64_t steps = 0;
    double best_validation = 0;    // of `best`, or the smallest seen where nothing beat the start
    std::vector<at::Tensor> best;  // empty: nothing beat the start
  };

  void fit(WindowReport& report);
  void train(WindowReport& report);
  void keep(const std::vector<at::Tensor>& values);
  Attempt attempt(const ReconstructOptions& options, double validation_to_beat);
  /// Where the device has no memory for whole batches, once more with halves of them.
  Attempt attempt_in_memory(const ReconstructOptions& options, double validation_to_beat);
  /// One epoch's loss, summed over its steps on the device; advances `step`.
  at::Tensor run_epoch(const ReconstructOptions& options, int epoch, int64_t num_steps,
                       int64_t& step);
  /// Gradients of one batch; returns its summed loss.
  at::Tensor accumulate_gradients(std::span<const int> batch);
  double evaluate(const std::vector<at::Tensor>& values, std::span<const int> windows);

  const SpanJob& span_;
  Variant& variant_;
  HalfRange halves_;
  ReconstructOptions options_;
  std::string name_;
  WindowData data_;
  WindowWeights weights_;
  HoldOut split_;
  size_t micro_batch_;  // sequences whose activations lie in memory at once
};

}  // namespace coppice
