// What is pruned, how much, in which pattern. Keys of the recipe's `prune:` section.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace coppice {

/// kGiven: not by scores, but by PruneOptions::masks. Those in …Sp, FLAP and SNIP remove units: FFN
/// neurons and attention heads, with all their weights. kSimilarity removes whole layers.
enum class PruneMethod {
  kRandom,
  kMagnitude,
  kWanda,
  kRia,
  kSparseGpt,
  kGiven,
  kRandomSp,
  kMagnitudeSp,
  kWandaSp,
  kFlap,
  kSnip,
  kSimilarity
};

inline bool removes_units(PruneMethod method) {
  return method == PruneMethod::kRandomSp || method == PruneMethod::kMagnitudeSp ||
         method == PruneMethod::kWandaSp || method == PruneMethod::kFlap ||
         method == PruneMethod::kSnip;
}

/// What of the model's layers may go: blocks, halves of either kind, or of one kind.
enum class LayerUnits { kBlocks, kSublayers, kAttention, kMlp };

/// Which heads go: any query head; as many query heads of every key-value head; or key-value heads
/// with all query heads that share them. The last two leave heads of a shape that can be cut out.
enum class HeadUnits { kQuery, kBalanced, kGroup };

/// num_kept of every group_size consecutive inputs of a row; group_size 0 is unstructured.
struct SparsityPattern {
  int num_kept = 0;
  int group_size = 0;
  bool is_unstructured() const { return group_size == 0; }
};

/// Within what the smallest scores are looked for. kAuto: rows; for RIA the matrix, as its authors
/// do.
enum class Comparison { kAuto, kRow, kMatrix };

/// Whose activations scores and Gram matrices see: of the dense model or of the adapted prefix.
/// kAuto: as ReconstructOptions::propagation has it, dense only where that is.
enum class StatisticsOf { kAuto, kDense, kPropagated };

/// The linears that `pattern` names get a sparsity of their own.
struct SparsityRule {
  std::string pattern;
  double sparsity = 0;
  bool operator==(const SparsityRule&) const = default;
};

/// How the sparsity is spread over the blocks: the same for all; by their shares of outliers (OWL,
/// arXiv:2310.05175), the same on average; of units, by their scores over the whole model (as FLAP
/// does, arXiv:2312.11983), or by what trials of every half-block cost the model's output.
enum class Allocation { kUniform, kOwl, kGlobal, kMeasured };

struct PruneOptions {
  PruneMethod method = PruneMethod::kWanda;
  double sparsity = 0.5;                   // fraction of zeros; with N:M it is 1 − N/M
  std::vector<double> block_sparsities;    // one a block, instead of `sparsity`; or empty
  std::vector<SparsityRule> sparsity_map;  // the first that names a linear goes before both
  Allocation allocation = Allocation::kUniform;
  double owl_m = 5;          // an outlier's score is above so many times the mean of its block
  double owl_lambda = 0.08;  // the blocks' sparsities lie within twice this
  SparsityPattern pattern;
  Comparison comparison = Comparison::kAuto;  // SparseGPT compares within its lazy blocks
  StatisticsOf statistics = StatisticsOf::kAuto;
  double ffn_sparsity = 0;   // of methods that remove units: share of the neurons
  double head_sparsity = 0;  // … and of the heads of each block
  // Of all units' parameters, under one budget for neurons and heads, instead of these two: where
  // Allocation is kGlobal or kMeasured.
  double unit_sparsity = 0;
  HeadUnits head_units = HeadUnits::kQuery;
  LayerUnits layer_units = LayerUnits::kBlocks;
  double layer_sparsity = 0;        // of kSimilarity: share of the layers that go
  std::vector<int> removed_halves;  // … which they are, ascending: known after a survey
  bool is_sliced = false;  // removed units are cut out of what is written; else they are zeros
  std::vector<std::string> targets;  // empty: every linear of the blocks; "re:…" or names
  std::vector<std::string> ignore = {"lm_head"};
  uint64_t seed = 0;          // of random scores
  std::string masks;          // kGiven: a directory whose masks, or zeros, decide
  bool export_masks = false;  // written beside the checkpoint, as bitmasks
};

}  // namespace coppice
