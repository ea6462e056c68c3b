// Cuts out what was removed: smaller matrices or fewer blocks, which stock software loads by a
// smaller config.json.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "stages/model/architecture.h"
#include "stages/prune_options.h"

namespace coppice {

/// What `architecture` becomes when every block loses the units that the options ask for: sizes and
/// shapes of linears; or the number of blocks, when some go as wholes (PruneMethod::kSimilarity).
/// Throws std::invalid_argument, saying what would do, where that has no one shape: blocks or
/// experts that keep different numbers, query heads that leave key-value heads with different
/// numbers, heads of a class that knows their width by the number of them alone; and where norms
/// act on behind a layer that is zero.
Architecture sliced_architecture(const Architecture& architecture, const PruneOptions& options);

/// The keys of config.json that say so, with their new values.
std::map<std::string, int64_t> sliced_sizes(const Architecture& dense, const Architecture& sliced);

/// What is left of one tensor: these rows (dim 0) or columns (dim 1), int64.
struct Slice {
  int64_t dim = 0;
  at::Tensor index;
};

/// By the full names of the tensors of a block that lose something; `kept_units` as in
/// Variant::kept_units.
std::map<std::string, Slice> slices_of(const Architecture& dense, int block,
                                       const std::map<std::string, at::Tensor>& kept_units);

}  // namespace coppice
