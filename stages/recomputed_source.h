// Hidden states inside a block, made again from those that enter it instead of being kept.
#pragma once

#include <memory>

#include "stages/activations.h"
#include "stages/finite.h"  // StorableCheck
#include "stages/span_job.h"

namespace coppice {

/// What the dense halves [halves.first, halves.last) make of `inputs`, window by window: the bits
/// that the dense forward's sink was given, rounded to the model's dtype as a cache would. Weights
/// are converted to the compute dtype once. `span` and its weights outlive the source. Used like
/// any source: by the device's thread alone.
class RecomputedSource final : public ActivationSource {
 public:
  RecomputedSource(const SpanJob& span, HalfRange halves, std::unique_ptr<ActivationSource> inputs);
  int num_windows() const override { return inputs_->num_windows(); }
  /// Throws NumericalError if what was read since the last announcement is not finite.
  void announce(std::span<const int> order) override;
  MicroBatch read(std::span<const int> windows) override;

 private:
  const SpanJob& span_;
  HalfRange halves_;
  std::unique_ptr<ActivationSource> inputs_;
  StorableCheck check_;
  std::vector<BlockWeights> weights_;  // of each half, in the compute dtype
};

}  // namespace coppice
