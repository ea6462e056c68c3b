// Which windows are trained on, in which order; the rate is beside it in stages/reconstruct.h.
#pragma once

#include <string>
#include <vector>

#include "stages/reconstruct_options.h"

namespace coppice {

/// The training windows 0 … num_training − 1 in the order of one epoch: ascending, or shuffled by
/// (options.seed, window_name, epoch) alone, the same on every machine.
std::vector<int> epoch_order(const ReconstructOptions& options, const std::string& window_name,
                             int epoch, int num_training);

}  // namespace coppice
