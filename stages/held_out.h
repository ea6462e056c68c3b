// The held-out windows carried through the adapted model, to judge it as a whole.
#pragma once

#include "stages/stage.h"

namespace coppice {

/// Runs the span's adapted halves (as they will be written; dense where nothing was adapted) on
/// Variant::held_out and puts what leaves them in its place; at the first block it starts from the
/// embeddings. The windows are those that num_held_out() counts, the micro-batch is one sequence.
/// Throws NumericalError for hidden states that the model's dtype cannot hold.
class HeldOutForward final : public Stage {
 public:
  explicit HeldOutForward(double held_out_fraction) : held_out_fraction_(held_out_fraction) {}
  std::string_view name() const override { return "held-out forward"; }
  Products needs() const override { return Products::kNone; }
  Products gives() const override { return Products::kNone; }
  Cost cost(const SpanShape& shape) const override;
  void run(WindowJob& job) const override;

 private:
  double held_out_fraction_;
};

}  // namespace coppice
