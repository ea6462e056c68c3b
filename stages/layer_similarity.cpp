#include "stages/layer_similarity.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace coppice {
namespace {

void accumulate(at::Tensor& sum, const at::Tensor& more) {
  sum = sum.defined() ? sum.add_(more) : more;
}

/// A layer that may go, and how similar its output is to its input.
struct Candidate {
  std::vector<int> halves;
  double similarity = 0;
};

std::vector<Candidate> candidates(const std::vector<LayerSimilarities>& similarities,
                                  LayerUnits units) {
  std::vector<Candidate> candidates;
  for (size_t block = 0; block < similarities.size(); ++block) {
    const int attention = 2 * static_cast<int>(block), mlp = attention + 1;
    const bool has_halves = units == LayerUnits::kSublayers;
    if (units == LayerUnits::kBlocks) {
      candidates.push_back({{attention, mlp}, similarities[block].block});
    }
    if (has_halves || units == LayerUnits::kAttention) {
      candidates.push_back({{attention}, similarities[block].attention});
    }
    if (has_halves || units == LayerUnits::kMlp) {
      candidates.push_back({{mlp}, similarities[block].mlp});
    }
  }
  return candidates;
}

}  // namespace

at::Tensor sum_of_cosines(const at::Tensor& entering, const at::Tensor& leaving) {
  const at::Tensor x = entering.to(at::kFloat), y = leaving.to(at::kFloat);
  const at::Tensor x_norm = x.norm(2, 1), y_norm = y.norm(2, 1);  // [tokens]
  const at::Tensor is_silent = x_norm.eq(0), is_silenced = y_norm.eq(0);
  // One norm after the other: their product may be too small for fp32.
  const at::Tensor cosine = x.mul(y).sum(1).div_(x_norm).div_(y_norm);
  const at::Tensor of_zeros = is_silent.logical_and(is_silenced).to(at::kFloat);
  return at::where(is_silent.logical_or(is_silenced), of_zeros, cosine).sum(at::kDouble);
}

void SimilarityMeans::add(int half, const at::Tensor& entering, const at::Tensor& leaving) {
  Sums& sums = sums_[half / 2];
  if (half_of(half) == Half::kAttention) {
    accumulate(sums.attention, sum_of_cosines(entering, leaving));
    sums.entering = entering;
    return;
  }
  accumulate(sums.mlp, sum_of_cosines(entering, leaving));
  accumulate(sums.block, sum_of_cosines(sums.entering, leaving));
  sums.entering.reset();
  sums.tokens += leaving.size(0);
}

std::map<int, LayerSimilarities> SimilarityMeans::means() const {
  std::map<int, LayerSimilarities> means;
  for (const auto& [block, sums] : sums_) {
    if (sums.tokens == 0) continue;
    const auto mean = [tokens = static_cast<double>(sums.tokens)](const at::Tensor& sum) {
      return sum.item<double>() / tokens;
    };
    means[block] = {mean(sums.attention), mean(sums.mlp), mean(sums.block)};
  }
  return means;
}

int num_layers(LayerUnits units, int num_blocks) {
  return units == LayerUnits::kSublayers ? 2 * num_blocks : num_blocks;
}

int num_removed_layers(const PruneOptions& options, int num_blocks) {
  const double share = options.layer_sparsity * num_layers(options.layer_units, num_blocks);
  return std::max(1, static_cast<int>(std::lround(share)));
}

std::vector<int> most_similar_halves(const std::vector<LayerSimilarities>& similarities,
                                     const PruneOptions& options) {
  std::vector<Candidate> layers = candidates(similarities, options.layer_units);
  std::reverse(layers.begin(), layers.end());  // of equal ones the later is first
  std::stable_sort(layers.begin(), layers.end(), [](const Candidate& a, const Candidate& b) {
    return a.similarity > b.similarity;
  });
  layers.resize(
      static_cast<size_t>(num_removed_layers(options, static_cast<int>(similarities.size()))));
  std::vector<int> halves;
  for (const Candidate& layer : layers) {
    halves.insert(halves.end(), layer.halves.begin(), layer.halves.end());
  }
  std::sort(halves.begin(), halves.end());
  return halves;
}

bool is_removed(const PruneOptions& options, int half) {
  return std::binary_search(options.removed_halves.begin(), options.removed_halves.end(), half);
}

std::vector<int> removed_blocks(const PruneOptions& options) {
  std::vector<int> blocks;
  for (const int half : options.removed_halves) {
    if (half_of(half) == Half::kAttention && is_removed(options, half + 1)) {
      blocks.push_back(half / 2);
    }
  }
  return blocks;
}

}  // namespace coppice
