// What it costs to fit and train a window: see Stage::cost().
#pragma once

#include "stages/reconstruct_options.h"
#include "stages/stage.h"

namespace coppice {

/// Of WindowTrainer. At least two calibration windows. Pure function.
Cost window_cost(const SpanShape& shape, const ReconstructOptions& options);

/// Of MatrixTrainer, for the half-blocks of a window, one after the other.
Cost matrix_cost(const SpanShape& shape, const ReconstructOptions& options);

}  // namespace coppice
