// Which linears of a window are to be pruned.
#pragma once

#include <string>
#include <vector>

#include "stages/model/architecture.h"
#include "stages/prune_options.h"
#include "stages/span_job.h"

namespace coppice {

/// One linear of the window, with its names spelled out.
struct Target {
  const LinearSpec& spec;
  int half = 0;           // half-block number
  std::string tensor;     // full name of its weight
  std::string statistic;  // full name of what it reads
  double sparsity = 0;    // fraction of zeros
};

/// The targeted linears of [first, last), half by half in the order of the architecture.
std::vector<Target> targets_of(const Architecture& architecture, HalfRange halves,
                               const PruneOptions& options);

/// Whether a linear (module name without ".weight", e.g. "model.layers.3.mlp.up_proj") is to be
/// pruned. Patterns: "re:…" is searched with ECMAScript rules from the start, anything else matches
/// the full name or its last components ("mlp.up_proj", "up_proj"). Throws std::invalid_argument
/// naming a pattern that is no regular expression.
bool is_target(const PruneOptions& options, const std::string& linear);

/// Whether one such pattern names a linear.
bool names_linear(const std::string& pattern, const std::string& linear);

/// "unstructured", "2:4".
std::string pattern_name(const SparsityPattern& pattern);

/// Throws std::invalid_argument, naming the tensor, where groups of the pattern do not fill a row.
void require_whole_groups(const Target& target, const SparsityPattern& pattern);

}  // namespace coppice
