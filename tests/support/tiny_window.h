// One window of a tiny span, reconstructed.
#pragma once

#include "stages/reconstruct.h"
#include "tests/support/tiny_llama.h"

namespace coppice::testing {

inline constexpr int kWindows = 9;
inline constexpr HalfRange kAttention{0, 1}, kMlp{1, 2}, kBlock{0, 2};

inline ReconstructOptions options_with(double lr, int epochs = 2) {
  ReconstructOptions options;
  options.lr = lr;
  options.epochs = epochs;
  options.validation_fraction = 0.25;
  return options;
}

inline WindowReport run(TinySpan& span, HalfRange halves, const ReconstructOptions& options) {
  WindowJob job{span.job, halves, &span.variant()};
  Reconstruct(options).run(job);
  return span.variant().windows.back();
}

}  // namespace coppice::testing
