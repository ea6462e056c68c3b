// The dense forward of a span: boundaries for the cache, statistics of every linear's input.
#pragma once

#include "stages/stage.h"

namespace coppice {

/// Reads each calibration window once, runs the span's halves on it with the dense weights, writes
/// every boundary somebody will ask for, and accumulates InputStatistics (fp32 squares summed in
/// fp64). The micro-batch is one calibration window.
class Calibrate final : public Stage {
 public:
  enum class Statistics { kNone, kSquares };
  /// When weights are converted to the compute dtype: once for all windows, or for every product
  /// (a copy of the largest weight instead of the whole block; the same bits).
  enum class Convert { kAhead, kOnUse };
  explicit Calibrate(Statistics statistics, Convert convert = Convert::kAhead)
      : statistics_(statistics), convert_(convert) {}
  std::string_view name() const override { return "calibrate"; }
  Products needs() const override { return Products::kNone; }
  Products gives() const override;
  Cost cost(const SpanShape& shape) const override;
  void run(WindowJob& job) const override;

 private:
  Statistics statistics_;
  Convert convert_;
};

}  // namespace coppice
