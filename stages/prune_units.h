// Removes neurons and heads: scores a window's units, zeroes the weights of those that go.
#pragma once

#include "stages/prune.h"  // KeepMasks
#include "stages/stage.h"

namespace coppice {

/// Fills adapted, masks and the linear reports of the variant for every linear that belongs to a
/// unit that may go: rows of producers, with their biases (which are named as trained); columns of
/// the consumer; rows of shared linears that no unit reads any more. Zeros are +0, shapes stay.
/// What is targeted are consumers (PruneOptions::targets, ignore, sparsity_map): their units'
/// producers follow. An expert that no token was routed to is pruned by magnitude, and its report
/// says so. Scores of kSnip are those of Variant::unit_scores: without one std::logic_error.
class PruneUnits final : public Stage {
 public:
  /// Throws std::invalid_argument unless removes_units(options.method).
  explicit PruneUnits(PruneOptions options, KeepMasks keep = KeepMasks::kYes);
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
