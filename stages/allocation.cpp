#include "stages/allocation.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "stages/scores/wanda.h"
#include "stages/targets.h"

namespace coppice {
namespace {

at::Tensor score_of(const SpanJob& span, const Target& target) {
  const InputStatistics& statistics = span.statistics.at(target.statistic);
  // Linears that saw different numbers of tokens are compared by what one token brings.
  const double tokens = std::sqrt(static_cast<double>(statistics.tokens));
  return wanda_score(span.dense_at(target.half).linears.at(target.spec.role).weight,
                     statistics.column_norm().div_(tokens));
}

/// But for experts that no token was routed to.
std::vector<Target> seen_targets(const SpanJob& span, int block, const PruneOptions& options) {
  std::vector<Target> seen;
  for (Target& target : targets_of(span.architecture, {2 * block, 2 * block + 2}, options)) {
    if (span.statistics.at(target.statistic).tokens > 0) seen.push_back(std::move(target));
  }
  return seen;
}

}  // namespace

std::optional<double> outlier_ratio(const SpanJob& span, int block, const PruneOptions& options) {
  const at::NoGradGuard no_graph;
  const std::vector<Target> targets = seen_targets(span, block, options);
  double sum = 0;
  int64_t weights = 0;
  for (const Target& target : targets) {
    const at::Tensor score = score_of(span, target);
    sum += score.sum(1).sum(at::kDouble).item<double>();  // rows in fp32: no copy in fp64
    weights += score.numel();
  }
  if (weights == 0) return std::nullopt;
  const double threshold = options.owl_m * sum / static_cast<double>(weights);
  int64_t outliers = 0;
  for (const Target& target : targets) {  // scored again: all scores at once are a block in fp32
    outliers += score_of(span, target).gt(threshold).count_nonzero().item<int64_t>();
  }
  return static_cast<double>(outliers) / static_cast<double>(weights);
}

std::vector<double> owl_sparsities(const std::vector<double>& ratios, double sparsity,
                                   double lambda) {
  if (ratios.empty()) return {};
  const auto [least, most] = std::minmax_element(ratios.begin(), ratios.end());
  const double width = *most - *least;
  const double scale = width > 0 ? 2 * lambda / width : 0;
  const double mean =
      std::accumulate(ratios.begin(), ratios.end(), 0.0) / static_cast<double>(ratios.size());
  std::vector<double> sparsities;
  sparsities.reserve(ratios.size());
  for (const double ratio : ratios) sparsities.push_back(sparsity - scale * (ratio - mean));
  return sparsities;
}

}  // namespace coppice
