// OWL: blocks with many outliers keep more of their weights.
#pragma once

#include <optional>
#include <vector>

#include "stages/prune_options.h"
#include "stages/span_job.h"

namespace coppice {

/// Share of the block's targeted weights whose score |W_ij| · ‖x_j‖ / √tokens is above
/// options.owl_m times the mean over all of them; nothing where none is targeted. Experts
/// that no token was routed to do not count. Wants
/// SpanJob::statistics. Holds a copy of the largest weight in fp32. On the device's thread.
/// Source: Yin et al., "Outlier Weighed Layerwise Sparsity (OWL)", arXiv:2310.05175, eq. 1 and 2.
std::optional<double> outlier_ratio(const SpanJob& span, int block, const PruneOptions& options);

/// One sparsity a block from its outlier ratio: ratios are stretched to a width of 2 · lambda and
/// moved so that the mean is `sparsity`; the block with most outliers has the smallest. All the
/// same where all ratios are. As the authors' code does. Pure function.
std::vector<double> owl_sparsities(const std::vector<double>& ratios, double sparsity,
                                   double lambda);

}  // namespace coppice
