#include "stages/units/targeted_units.h"

#include <utility>

#include "stages/targets.h"

namespace coppice {
namespace {

double sparsity_of(const PruneOptions& options, const UnitLayout& units,
                   const std::string& consumer) {
  if (!is_target(options, consumer)) return 0;
  for (const SparsityRule& rule : options.sparsity_map) {
    if (names_linear(rule.pattern, consumer)) return rule.sparsity;
  }
  if (options.unit_sparsity > 0) return options.unit_sparsity;
  return units.kind == UnitLayout::Kind::kHeads ? options.head_sparsity : options.ffn_sparsity;
}

}  // namespace

std::vector<TargetedUnits> targeted_units(const Architecture& architecture, int half,
                                          const PruneOptions& options) {
  std::vector<TargetedUnits> targeted;
  for (UnitLayout& units : unit_layouts(architecture, half_of(half))) {
    const double sparsity =
        sparsity_of(options, units, in_block(architecture, half / 2, units.consumer->name));
    targeted.push_back({std::move(units), sparsity});
  }
  return targeted;
}

}  // namespace coppice
