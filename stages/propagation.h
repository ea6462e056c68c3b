// Whose activations a recipe's windows read: those of the dense model, or of the adapted prefix.
#pragma once

#include "stages/prune_options.h"
#include "stages/reconstruct_options.h"
#include "stages/span_job.h"

namespace coppice {

/// Whether the activations of the adapted prefix flow on.
inline bool propagates(const ReconstructOptions& options) {
  return options.propagation != Propagation::kDense;
}

/// The stream that enters a window under reconstruction.
inline Stream input_stream(const ReconstructOptions& options) {
  return propagates(options) ? Stream::kPropagated : Stream::kDense;
}

/// The stream that scores and Gram matrices are taken from.
inline Stream statistics_stream(const PruneOptions& prune, const ReconstructOptions& reconstruct) {
  const bool are_dense = prune.statistics == StatisticsOf::kDense ||
                         (prune.statistics == StatisticsOf::kAuto && !propagates(reconstruct));
  return are_dense ? Stream::kDense : Stream::kPropagated;
}

}  // namespace coppice
