// Scores a window's linears, selects masks, writes the pruned weights.
#pragma once

#include "stages/stage.h"

namespace coppice {

/// Whether Variant::masks is filled: at a byte a weight, only for stages that will look.
enum class KeepMasks { kYes, kNo };

/// Fills adapted (dense weight · mask, by SparseGPT the updated one; zeros are +0), masks and the
/// linear reports of the variant for every targeted linear of the window. An expert that no
/// calibration token was routed to is pruned by magnitude, and its report says so.
class Prune final : public Stage {
 public:
  explicit Prune(PruneOptions options, KeepMasks keep = KeepMasks::kYes)
      : options_(std::move(options)), keep_(keep) {}
  std::string_view name() const override { return "prune"; }
  Products needs() const override;
  Products gives() const override;
  Cost cost(const SpanShape& shape) const override;
  void run(WindowJob& job) const override;

 private:
  PruneOptions options_;
  KeepMasks keep_;
};

}  // namespace coppice
