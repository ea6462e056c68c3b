// What is pruned, how much, in which pattern. Keys of the recipe's `prune:` section.
#pragma once

#include <string>
#include <vector>

namespace coppice {

enum class PruneMethod { kMagnitude, kWanda };

/// num_kept of every group_size consecutive inputs of a row; group_size 0 is unstructured.
struct SparsityPattern {
  int num_kept = 0;
  int group_size = 0;
  bool is_unstructured() const { return group_size == 0; }
};

enum class Comparison { kRow, kMatrix };  // within what the smallest scores are looked for

struct PruneOptions {
  PruneMethod method = PruneMethod::kWanda;
  double sparsity = 0.5;  // fraction of zeros; with N:M it is 1 − N/M
  SparsityPattern pattern;
  Comparison comparison = Comparison::kRow;  // magnitude only; Wanda always compares rows
  std::vector<std::string> targets;          // empty: every linear of the blocks; "re:…" or names
  std::vector<std::string> ignore = {"lm_head"};
};

}  // namespace coppice
