// Which units of a half may go, and how many.
#pragma once

#include <vector>

#include "stages/prune_options.h"
#include "stages/units/unit_layout.h"

namespace coppice {

/// The units of one consumer, and what share of them goes: 0, or what the first rule of the
/// sparsity map that names the consumer says, or the share of their kind.
struct TargetedUnits {
  UnitLayout units;
  double sparsity = 0;
};

/// Of half-block `half` of the model: every layout of unit_layouts(); none goes where the consumer
/// is no target (is_target).
std::vector<TargetedUnits> targeted_units(const Architecture& architecture, int half,
                                          const PruneOptions& options);

}  // namespace coppice
