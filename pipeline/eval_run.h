// Out-of-core perplexity, and distance from a reference: models streamed through the same graph,
// without adapt and store.
#pragma once

#include <filesystem>

#include "pipeline/forward_run.h"
#include "pipeline/head_pass.h"

namespace coppice {

struct EvalRunOptions : ForwardRunOptions {
  std::filesystem::path text;
  int64_t seqlen = 2048;
  int64_t max_windows = 0;  // 0: all
};

struct EvalResult {
  Quality quality;
  int64_t windows = 0;
  int64_t seqlen = 0;
  ForwardRunTotals totals;
};

/// With a reference one chunk of its head is held as well. Throws any of the program's errors.
EvalResult eval_run(const EvalRunOptions& options);

}  // namespace coppice
