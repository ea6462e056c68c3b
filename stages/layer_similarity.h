// How little layers change what passes through them, and which of them go for it.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <vector>

#include "stages/prune_options.h"
#include "stages/span_job.h"  // LayerSimilarities

namespace coppice {

/// Σ over tokens of the cosine between what enters and what leaves a layer.
///     entering, leaving  [tokens, hidden]  any float type
/// In fp32, summed over tokens in fp64: a scalar fp64 tensor on their device. A token of zeros that
/// stays so counts 1; one that is zeros on one side alone counts 0.
at::Tensor sum_of_cosines(const at::Tensor& entering, const at::Tensor& leaving);

/// Means of these over all windows of a forward pass. One thread.
class SimilarityMeans {
 public:
  /// A window has passed half-block `half`: of a block its attention half first, its MLP half next.
  void add(int half, const at::Tensor& entering, const at::Tensor& leaving);

  /// By block; of those whose MLP half was passed.
  std::map<int, LayerSimilarities> means() const;

 private:
  struct Sums {
    at::Tensor attention, mlp, block;  // scalars, fp64
    at::Tensor entering;               // the block, of the window at work
    int64_t tokens = 0;
  };
  std::map<int, Sums> sums_;
};

/// The layers of a kind that a model has, and how many of them go by
/// PruneOptions::layer_units and layer_sparsity: the number nearest to the share, at least one.
int num_layers(LayerUnits units, int num_blocks);
int num_removed_layers(const PruneOptions& options, int num_blocks);

/// The half-blocks of the most similar layers, as many layers as shall go; of equal ones the later.
/// Ascending: PruneOptions::removed_halves. `similarities`: of all blocks, in order. Pure function.
/// Source: blocks, "ShortGPT", arXiv:2403.03853; halves, "What Matters in Transformers? Not All
/// Attention is Needed", arXiv:2406.15786.
std::vector<int> most_similar_halves(const std::vector<LayerSimilarities>& similarities,
                                     const PruneOptions& options);

/// Whether half-block `half` goes.
bool is_removed(const PruneOptions& options, int half);

/// The blocks of which both halves go, ascending.
std::vector<int> removed_blocks(const PruneOptions& options);

}  // namespace coppice
