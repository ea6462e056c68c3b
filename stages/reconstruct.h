// Adapts a window's kept weights until its output matches the dense model's.
#pragma once

#include "stages/stage.h"

namespace coppice {

/// Least squares weight by weight, AdamW on fp32 masters under fixed masks, or one after the other;
/// products in the compute dtype, keep-best judged on the held-out windows with weights rounded as
/// they will be written. If nothing beats the pruned weights they stay; a non-finite loss halves
/// the rate and restarts, at most twice. See ReconstructOptions.
///
/// Where layers went (PruneMethod::kSimilarity), windows that have nothing to win stay as they are
/// and get no report: those of which nothing is left, and those that make what the dense model
/// does.
class Reconstruct final : public Stage {
 public:
  explicit Reconstruct(ReconstructOptions options) : options_(options) {}
  std::string_view name() const override { return "reconstruct"; }
  Products needs() const override;
  Products gives() const override { return Products::kAdapted; }
  Cost cost(const SpanShape& shape) const override;
  void run(WindowJob& job) const override;

 private:
  ReconstructOptions options_;
};

/// Rate of step `step` (from 0) of `num_steps`: linear warm-up over warmup · num_steps (never 0),
/// then linear decay to 0.
double learning_rate(const ReconstructOptions& options, int64_t step, int64_t num_steps);

/// Held-out windows are the last ⌈validation_fraction · n⌉ of n, at least one, and leave one to
/// train on.
int num_held_out(double validation_fraction, int num_windows);

}  // namespace coppice
