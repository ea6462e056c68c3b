#include "pipeline/plan/planned_work.h"

#include <algorithm>
#include <numeric>

#include "stages/held_out.h"
#include "stages/propagation.h"
#include "stages/reconstruct.h"
#include "stages/stage_table.h"
#include "stages/targets.h"  // is_target
#include "stages/units/targeted_units.h"

namespace coppice {
namespace {

// Measured as JSON of a report: what the RAM of runs and sweeps had beyond their plan, and the
// journal's size, over 18,528 linears.
constexpr uint64_t kLinearRam = 1400, kMatrixRam = 4200, kLinearJournal = 700;
// Of a block beside its linears, windows of both halves included: 5,244 bytes as JSON in memory,
// 794 as text, and the names of its files.
constexpr uint64_t kBlockRam = 6000, kBlockJournal = 1000;

bool has_half_block_boundaries(const ReconstructOptions& options) {
  return has_windows_inside_blocks(options.window) && options.propagation != Propagation::kSparse;
}

/// Of what the reconstruction of a block reads, what the dense attention half makes: the targets of
/// the attention half and, unless the pruned prefix makes them, the inputs of the MLP half. A
/// matrix of the MLP half reads them for its inputs, or for its targets.
double recomputed_reads(const PlanInputs& in, const Recipe& recipe) {
  const ReconstructOptions& options = recipe.reconstruct;
  if (!has_half_block_boundaries(options)) return 0;
  const auto share = [&](HalfRange window) {
    const bool is_mlp = half_of(window.first) == Half::kMlp;
    if (options.window.kind != WindowKind::kMatrix) {
      return is_mlp && propagates(options) ? 0.0 : 0.5;
    }
    return !is_mlp ? 0.0 : propagates(options) ? 0.5 : 1.0;
  };
  double bytes = 0;
  for (const HalfRange& window : windows_of_span(in, recipe)) {
    bytes += share(window) * Reconstruct(options).cost(shape_of(in, window)).bytes_moved;
  }
  return bytes;
}

int64_t linears_of_units(const Architecture& architecture, const PruneOptions& prune) {
  int64_t linears = 0;
  for (int half = 0; half < 2 * architecture.num_blocks; ++half) {
    for (const auto& [units, sparsity] : targeted_units(architecture, half, prune)) {
      if (sparsity > 0) linears += int64_t(units.producers.size() + units.shared.size()) + 1;
    }
  }
  return linears;
}

/// Linears that a report will name: those that are pruned.
int64_t reported_linears(const Architecture& architecture, const PruneOptions& prune) {
  if (removes_units(prune.method)) return linears_of_units(architecture, prune);
  int64_t linears = 0;
  for (int block = 0; block < architecture.num_blocks; ++block) {
    for (const LinearSpec& linear : architecture.linears) {
      linears += is_target(prune, in_block(architecture, block, linear.name));
    }
  }
  return linears;
}

}  // namespace

uint64_t window_bytes(const PlanInputs& in) {
  const uint64_t element = in.architecture.dtype == "F32" ? 4 : 2;
  return uint64_t(in.seqlen) * uint64_t(in.architecture.hidden) * element;
}

bool has_half_block_boundaries(const PlanInputs& in) {
  return std::any_of(in.recipes.begin(), in.recipes.end(), [](const Recipe& recipe) {
    return has_half_block_boundaries(recipe.reconstruct);
  });
}

bool has_windows_of_halves(const PlanInputs& in) {
  return std::any_of(in.recipes.begin(), in.recipes.end(), [](const Recipe& recipe) {
    return recipe.reconstruct.window.kind == WindowKind::kBlock && trains_adamw(recipe.reconstruct);
  });
}

int num_streams(const PlanInputs& in) {
  const bool has_dense = forward_stage(in, Calibrate::Convert::kAhead) != nullptr;
  return int(has_dense) + int(propagates(in.recipes.front().reconstruct));
}

// Only one recipe propagates at a time.
int streams_inside(const PlanInputs& in, bool recompute_targets) {
  const ReconstructOptions& options = in.recipes.front().reconstruct;
  const bool has_propagated = propagates(options) && options.window.kind != WindowKind::kBlock;
  return blocks_per_span(in.recipes) *
         (int(has_half_block_boundaries(in) && !recompute_targets) + int(has_propagated));
}

int blocks_inside(const PlanInputs& in) {
  int count = 0;
  for (int block = 1; block < blocks_per_span(in.recipes); ++block) {
    count += std::any_of(in.recipes.begin(), in.recipes.end(), [&](const Recipe& recipe) {
      const Window& window = recipe.reconstruct.window;
      return has_windows_inside_blocks(window) ||
             (window.kind == WindowKind::kBlock && block % window.blocks == 0);
    });
  }
  return count;
}

int all_slots(const PlanInputs& in, const RunSettings& settings) {
  return in.devices * settings.slots;
}

int spans_begun(const PlanInputs& in, const RunSettings& settings) {
  return in.devices > 1 ? all_slots(in, settings) : 1;
}

int boundaries_ahead(const PlanInputs& in, const RunSettings& settings) {
  return in.devices > 1 ? all_slots(in, settings) * (1 + blocks_inside(in)) : 0;
}

int boundaries_between(const PlanInputs& in, const RunSettings& settings) {
  return 2 * num_streams(in) + blocks_inside(in) + boundaries_ahead(in, settings);
}

int blocks_per_span(const std::vector<Recipe>& recipes) {
  int blocks = 1;
  for (const Recipe& recipe : recipes) blocks = std::lcm(blocks, recipe.reconstruct.window.blocks);
  return blocks;
}

HalfRange span_of(const PlanInputs& in) { return {0, 2 * blocks_per_span(in.recipes)}; }

uint64_t adapted_bytes(const PlanInputs& in) {
  return in.image_bytes * uint64_t(std::max(1, in.num_written));
}

double spans_to_do(const PlanInputs& in) {
  return double(in.blocks_to_do) / blocks_per_span(in.recipes);
}

std::vector<HalfRange> windows_of_span(const PlanInputs& in, const Recipe& recipe) {
  return windows_of(span_of(in), recipe.reconstruct.window);
}

std::vector<std::unique_ptr<Stage>> adapt_stages(const PlanInputs& in, const Recipe& recipe) {
  std::vector<std::unique_ptr<Stage>> stages = adapt_stages(recipe.prune, recipe.reconstruct);
  if (in.is_judged) {
    stages.push_back(std::make_unique<HeldOutForward>(recipe.reconstruct.validation_fraction));
  }
  return stages;
}

std::unique_ptr<Stage> forward_stage(const PlanInputs& in, Calibrate::Convert convert) {
  std::vector<VariantOptions> options;
  options.reserve(in.recipes.size());
  for (const Recipe& recipe : in.recipes) options.push_back({recipe.prune, recipe.reconstruct});
  return forward_stage(options, convert);
}

SpanShape shape_of(const PlanInputs& in, HalfRange halves, KeptActivations kept) {
  return {in.architecture, halves, in.windows, in.seqlen, in.compute_bytes, in.is_host, kept};
}

double adapt_reads(const PlanInputs& in) {
  double bytes = 0;
  for (const Recipe& recipe : in.recipes) {
    for (const HalfRange& window : windows_of_span(in, recipe)) {
      for (const auto& stage : adapt_stages(in, recipe)) {
        bytes += stage->cost(shape_of(in, window)).bytes_moved;
      }
    }
  }
  return bytes;
}

Cost recompute_cost(const PlanInputs& in) {
  double reads = 0;  // windows
  for (const Recipe& recipe : in.recipes) {
    reads += recomputed_reads(in, recipe) / double(window_bytes(in));
  }
  Cost cost = Calibrate({}).cost(shape_of(in, {0, 1}));
  const double passes = reads / double(std::max<int64_t>(1, in.windows));
  cost.product_flop *= passes;
  cost.attention_flop *= passes;
  cost.bytes_touched *= passes;
  cost.bytes_moved = 0;  // its inputs are counted as what would have been read
  return cost;
}

RecordBytes record_bytes(const Architecture& architecture, const std::vector<Recipe>& recipes) {
  RecordBytes bytes;
  for (const Recipe& recipe : recipes) {
    const auto blocks = uint64_t(architecture.num_blocks);
    const auto linears = uint64_t(reported_linears(architecture, recipe.prune));
    const bool has_matrices = recipe.reconstruct.window.kind == WindowKind::kMatrix;
    bytes.ram += blocks * kBlockRam + linears * (has_matrices ? kMatrixRam : kLinearRam);
    bytes.journal += blocks * kBlockJournal + linears * kLinearJournal;
  }
  return bytes;
}

}  // namespace coppice
