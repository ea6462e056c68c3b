// The dense forward of a window: boundaries for the cache, statistics of every linear's input.
#pragma once

#include "stages/stage.h"

namespace coppice {

/// Reads each calibration window once, runs the span's halves on it with the dense weights, writes
/// every boundary somebody will ask for, and accumulates InputStatistics: squares over all windows
/// (fp32, summed in fp64), Gram matrices over those that are not held out, so that what is fitted
/// to them can be judged on the rest. An expert's are of the tokens routed to it alone; where there
/// are none, they are zeros and count no token. SpanJob::similarities, where they are wanted, are
/// of all windows and whole blocks. The micro-batch is one calibration window.
class Calibrate final : public Stage {
 public:
  enum class Statistics { kNone, kSquares, kGram };  // kGram: squares as well
  /// When weights are converted to the compute dtype: once for all windows, or for every product
  /// (a copy of the largest weight instead of the whole block; the same bits).
  enum class Convert { kAhead, kOnUse };
  struct Options {
    Statistics statistics = Statistics::kNone;
    bool wants_sums = false;          // of columns, beside their squares
    bool wants_similarities = false;  // between what enters layers and what leaves them
    Convert convert = Convert::kAhead;
    /// Whose activations the dense weights see: kPropagated for statistics of what the adapted
    /// prefix makes, which writes no boundary and forgets the statistics there were.
    Stream stream = Stream::kDense;
    double held_out_fraction = 0;  // of the windows, as num_held_out() counts; 0: none is held out
  };
  explicit Calibrate(Options options) : options_(options) {}
  std::string_view name() const override {
    return options_.stream == Stream::kDense ? "calibrate" : "propagated statistics";
  }
  Products needs() const override { return Products::kNone; }
  Products gives() const override;
  Cost cost(const SpanShape& shape) const override;
  void run(WindowJob& job) const override;

 private:
  int num_gram_windows(int64_t num_windows) const;
  double widened_bytes(const SpanShape& shape, Half half) const;  // of one window

  Options options_;
};

}  // namespace coppice
