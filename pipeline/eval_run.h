// Out-of-core perplexity, and distance from a reference: models streamed through the same graph,
// without adapt and store.
#pragma once

#include <filesystem>

#include "configs/recipe.h"
#include "pipeline/head_pass.h"
#include "pipeline/telemetry/progress.h"

namespace coppice {

struct EvalRunOptions {
  std::filesystem::path model;
  std::filesystem::path against;  // a reference to compare with; may be empty
  std::filesystem::path text;
  std::filesystem::path work;          // tokens and cache; removed afterwards
  std::filesystem::path architecture;  // an extra description; may be empty
  std::filesystem::path trace;         // a timeline to write; may be empty
  int64_t seqlen = 2048;
  int64_t max_windows = 0;  // 0: all
  ResourceOptions resources;
  Verbosity verbosity = Verbosity::kNormal;
};

struct EvalResult {
  Quality quality;
  int64_t windows = 0;
  int64_t seqlen = 0;
  double wall_seconds = 0;
  double waited_seconds = 0;  // of the device's thread, for bytes
  uint64_t peak_rss_bytes = 0;
  std::string device;  // and what it computed with
};

/// Holds no more than the planned slots (a block or a chunk of the head each) and some windows;
/// with a reference one chunk of its head more. Throws any of the program's errors.
EvalResult eval_run(const EvalRunOptions& options);

}  // namespace coppice
