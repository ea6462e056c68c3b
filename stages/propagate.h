// What a window's adapted weights make of the activations of the adapted prefix.
#pragma once

#include "stages/stage.h"

namespace coppice {

/// Reads each calibration window once as it enters the window in the propagated stream, runs the
/// adapted halves on it (as they will be written; dense where nothing was adapted), and writes what
/// leaves. Writes nothing, and computes nothing, where nobody will read it. The micro-batch is one
/// calibration window. Throws NumericalError for weights of the block that are not finite, as well.
class Propagate final : public Stage {
 public:
  std::string_view name() const override { return "propagate"; }
  Products needs() const override { return Products::kNone; }
  Products gives() const override { return Products::kNone; }
  Cost cost(const SpanShape& shape) const override;
  void run(WindowJob& job) const override;
};

/// The tensors of half-block `half` as the variant has adapted them, the dense ones elsewhere.
/// Stored dtype.
BlockWeights adapted_half(const SpanJob& span, const Variant& variant, int half);

}  // namespace coppice
