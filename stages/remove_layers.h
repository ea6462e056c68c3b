// Removes whole layers: the linears of half-blocks that go become zero.
#pragma once

#include "stages/prune.h"  // KeepMasks
#include "stages/stage.h"

namespace coppice {

/// Fills adapted, masks and the linear reports of the variant for every linear of the window's
/// halves that go (PruneOptions::removed_halves): weights and biases, which are named as trained,
/// become +0; of a mixture those of all experts. Norms and the router stay, shapes as well.
///
/// What is left of such a half is its residual stream. Where norms come before the layers, it hands
/// on what enters it, exactly; where they come after them (BERT), what it hands on is normalised
/// all the same.
class RemoveLayers final : public Stage {
 public:
  /// Throws std::invalid_argument unless the method is PruneMethod::kSimilarity.
  explicit RemoveLayers(PruneOptions options, KeepMasks keep = KeepMasks::kYes);
  std::string_view name() const override { return "prune"; }
  Products needs() const override { return Products::kNone; }
  Products gives() const override;
  /// Of the halves that go; where that is not known yet, of any.
  Cost cost(const SpanShape& shape) const override;
  void run(WindowJob& job) const override;

 private:
  void remove(SpanJob& span, int half, Variant& variant) const;

  PruneOptions options_;
  KeepMasks keep_;
};

}  // namespace coppice
