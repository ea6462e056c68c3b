// What no single key of a recipe can see.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "configs/errors.h"
#include "configs/recipe.h"

namespace coppice {
namespace {

enum class Stated { kByUser, kByNobody };

void check_pattern(PruneOptions& prune, Stated sparsity) {
  if (prune.pattern.is_unstructured()) return;
  const std::string pattern =
      fmt::format("{}:{}", prune.pattern.num_kept, prune.pattern.group_size);
  const double implied =
      1.0 - static_cast<double>(prune.pattern.num_kept) / prune.pattern.group_size;
  // 0.667 is a fair way to state 1:3.
  if (sparsity == Stated::kByUser && std::abs(prune.sparsity - implied) > 1e-3) {
    throw ConfigError(
        fmt::format("prune.sparsity: {}: sparsity_type {} makes it {}; leave it out or state that",
                    prune.sparsity, pattern, implied));
  }
  if (!prune.block_sparsities.empty() || !prune.sparsity_map.empty()) {
    throw ConfigError(fmt::format(
        "prune.{}: sparsity_type {} makes every sparsity {}; leave it out",
        prune.sparsity_map.empty() ? "block_sparsities" : "sparsity_map", pattern, implied));
  }
  if (prune.comparison != Comparison::kAuto) {
    throw ConfigError(
        fmt::format("prune.comparison: sparsity_type {} compares within {} inputs of a row; leave "
                    "it out",
                    pattern, prune.pattern.group_size));
  }
  prune.sparsity = implied;
}

/// Masks that are given decide alone. They make the method `given` where none was stated.
void check_masks(PruneOptions& prune, Stated method) {
  if (prune.masks.empty()) {
    if (prune.method != PruneMethod::kGiven) return;
    throw ConfigError("prune.method: given: by which masks? prune.masks names their directory");
  }
  if (method == Stated::kByNobody) prune.method = PruneMethod::kGiven;
  if (prune.method != PruneMethod::kGiven) {
    throw ConfigError(
        "prune.masks: decide instead of scores; leave out prune.method, or the masks");
  }
  const PruneOptions defaults;  // what a written recipe states of them
  const bool is_told_otherwise = prune.sparsity != defaults.sparsity ||
                                 !prune.pattern.is_unstructured() ||
                                 !prune.block_sparsities.empty() || !prune.sparsity_map.empty();
  if (!is_told_otherwise) return;
  throw ConfigError(
      "prune.masks: decide what is pruned; leave out sparsity, sparsity_type, block_sparsities and "
      "sparsity_map");
}

void check_comparison(const PruneOptions& prune) {
  if (prune.method == PruneMethod::kWanda && prune.comparison == Comparison::kMatrix) {
    throw ConfigError(
        "prune.comparison: matrix: wanda compares within rows; leave it out, or prune by "
        "magnitude or ria");
  }
  if (prune.method == PruneMethod::kSparseGpt && prune.comparison != Comparison::kAuto) {
    throw ConfigError(
        "prune.comparison: sparsegpt compares within the blocks of columns it sweeps; leave it "
        "out");
  }
}

/// Whether units have one budget or two, and whether their results have one shape.
void check_unit_budget(const PruneOptions& prune, bool has_own_shares) {
  const bool is_uniform = prune.allocation == Allocation::kUniform;
  if (prune.unit_sparsity > 0 && has_own_shares) {
    throw ConfigError(
        "prune.unit_sparsity: one budget for neurons and heads together; leave it out, or "
        "ffn_sparsity and head_sparsity");
  }
  if (prune.unit_sparsity > 0 && is_uniform) {
    throw ConfigError(
        "prune.unit_sparsity: which neurons and heads go for it is decided over the whole model; "
        "set prune.allocation to measured or global");
  }
  if (!is_uniform && prune.unit_sparsity == 0 && !has_own_shares) {
    throw ConfigError(
        "prune.allocation: how much is to be spread? prune.unit_sparsity, or ffn_sparsity and "
        "head_sparsity, say it");
  }
  if (!is_uniform && prune.is_sliced) {
    const auto nearest = [&](double share) {
      return prune.unit_sparsity > 0 ? prune.unit_sparsity : share;
    };
    throw ConfigError(fmt::format(
        "prune.structured_output: sliced: blocks that keep different numbers of neurons and heads "
        "have no one shape; write them masked, or take the nearest uniform width: allocation "
        "uniform, ffn_sparsity {}, head_sparsity {}",
        nearest(prune.ffn_sparsity), nearest(prune.head_sparsity)));
  }
}

/// What of a recipe the removal of layers leaves without a meaning.
void check_pruning_of_layers(const PruneOptions& prune) {
  const PruneOptions defaults;  // what a written recipe states of them
  if (prune.layer_sparsity == 0) {
    throw ConfigError(
        "prune.method: similarity: removes layers: how many? prune.layer_sparsity says it");
  }
  if (prune.sparsity != defaults.sparsity || !prune.block_sparsities.empty() ||
      !prune.sparsity_map.empty() || !prune.pattern.is_unstructured() ||
      prune.comparison != Comparison::kAuto || prune.allocation != Allocation::kUniform ||
      prune.ffn_sparsity > 0 || prune.head_sparsity > 0 || prune.unit_sparsity > 0 ||
      !prune.targets.empty() || prune.ignore != defaults.ignore) {
    throw ConfigError(
        "prune.method: similarity: removes whole layers: leave out sparsity, sparsity_type, "
        "block_sparsities, sparsity_map, comparison, allocation, ffn_sparsity, head_sparsity, "
        "unit_sparsity, targets and ignore; layer_sparsity and layer_units say what goes");
  }
  if (prune.statistics == StatisticsOf::kPropagated) {
    throw ConfigError(
        "prune.statistics: propagated: similarity is measured on the dense model, before the run; "
        "leave it out");
  }
  if (prune.is_sliced && prune.layer_units != LayerUnits::kBlocks) {
    throw ConfigError(
        "prune.structured_output: sliced: a block of a stock class has attention and an MLP, so "
        "only whole blocks can be cut out; set prune.layer_units to blocks, or write the output "
        "masked");
  }
  if (prune.is_sliced && prune.export_masks) {
    throw ConfigError(
        "prune.export_masks: of blocks that are cut out there is nothing to mask; leave it out, or "
        "write the output masked");
  }
}

/// Layers are lost as wholes, so what makes up for them are the layers around them.
void check_reconstruction_of_layers(const Recipe& recipe) {
  const ReconstructOptions& reconstruct = recipe.reconstruct;
  const Window& window = reconstruct.window;
  if (fits(reconstruct)) {
    throw ConfigError(
        "reconstruct.solver: least_squares, liar and bias fit what is left of a linear, and "
        "similarity removes whole layers; adamw trains the layers that stay");
  }
  if (window.kind == WindowKind::kNone) return;
  if (window.kind == WindowKind::kMatrix) {
    throw ConfigError(
        "reconstruct.window: matrix: similarity removes whole layers, and leaves no matrix of "
        "which a part is to be adapted; choose half-block or more");
  }
  if (reconstruct.lr == 0) {
    throw ConfigError(
        "reconstruct.lr: auto: rates are tried before it is known which layers go; state one");
  }
  const bool is_one_layer = window.kind == WindowKind::kHalfBlock ||
                            (window.blocks == 1 && recipe.prune.layer_units == LayerUnits::kBlocks);
  if (is_one_layer && reconstruct.propagation != Propagation::kMixed) {
    throw ConfigError(
        "reconstruct.propagation: a window that is one layer is lost as a whole or not at all, and "
        "by itself has nothing to make up for; choose mixed, so that the layers which stay learn "
        "to reach the dense model's activations, or windows of more layers, or window none");
  }
}

/// What only similarity reads, and what it does not.
void check_layers(const Recipe& recipe) {
  const PruneOptions& prune = recipe.prune;
  if (prune.method == PruneMethod::kSimilarity) {
    check_pruning_of_layers(prune);
    check_reconstruction_of_layers(recipe);
    return;
  }
  if (prune.layer_sparsity == 0 && prune.layer_units == PruneOptions{}.layer_units) return;
  throw ConfigError(
      "prune.layer_sparsity, prune.layer_units: of method similarity, which removes layers; choose "
      "it, or leave these out");
}

/// What only methods that remove units read, and what they do not.
void check_units(Recipe& recipe, Stated ridge) {
  if (recipe.prune.method == PruneMethod::kSimilarity) return;  // see check_layers
  const PruneOptions& prune = recipe.prune;
  const PruneOptions defaults;  // what a written recipe states of them
  ReconstructOptions& reconstruct = recipe.reconstruct;
  const bool has_own_shares = prune.ffn_sparsity > 0 || prune.head_sparsity > 0;
  const bool has_shares = has_own_shares || prune.unit_sparsity > 0;
  if (!removes_units(prune.method)) {
    if (has_shares) {
      throw ConfigError(
          "prune.ffn_sparsity, prune.head_sparsity, prune.unit_sparsity: of methods that remove "
          "neurons and heads; choose one of them (wanda_sp, say), or leave these out");
    }
    if (prune.is_sliced) {
      throw ConfigError(
          "prune.structured_output: sliced: single zeros cannot be cut out; of methods that remove "
          "neurons and heads");
    }
    if (folds_units(reconstruct)) {
      throw ConfigError(
          "reconstruct.solver: liar and bias fold removed neurons and heads into what stays; for "
          "single weights least_squares does it");
    }
    return;
  }
  if (!has_shares && prune.sparsity_map.empty()) {
    throw ConfigError(
        "prune.method: removes neurons and heads: how many? prune.ffn_sparsity and "
        "prune.head_sparsity say it");
  }
  check_unit_budget(prune, has_own_shares);
  if (prune.sparsity != defaults.sparsity || !prune.block_sparsities.empty() ||
      !prune.pattern.is_unstructured() || prune.comparison != Comparison::kAuto ||
      prune.allocation == Allocation::kOwl) {
    throw ConfigError(
        "prune.method: removes neurons and heads: leave out sparsity, sparsity_type, "
        "block_sparsities, comparison and owl; ffn_sparsity, head_sparsity and sparsity_map "
        "say how many");
  }
  if (reconstruct.window.kind == WindowKind::kMatrix) {
    throw ConfigError(
        "reconstruct.window: matrix: neurons and heads are made and read by several matrices; "
        "choose half-block or more");
  }
  if (fits(reconstruct) && !folds_units(reconstruct)) {
    throw ConfigError(
        "reconstruct.solver: least_squares fits single weights; liar does it for neurons and "
        "heads");
  }
  if (folds_units(reconstruct) && ridge == Stated::kByNobody) reconstruct.ridge = 0;
}

void check_allocation(const Recipe& recipe) {
  const PruneOptions& prune = recipe.prune;
  if (prune.allocation == Allocation::kUniform) return;
  const bool is_owl = prune.allocation == Allocation::kOwl;
  const auto refuse = [&](const std::string& why) {
    const char* name = is_owl ? "owl" : removes_units(prune.method) ? "global" : "global, measured";
    throw ConfigError(fmt::format("prune.allocation: {}: {}", name, why));
  };
  if (!is_owl && !removes_units(prune.method)) {
    refuse("spreads neurons and heads; for single weights owl does it");
  }
  if (prune.allocation == Allocation::kMeasured) return;  // by a sweep of its own
  if (!prune.block_sparsities.empty()) refuse("decides the blocks' sparsities; leave them out");
  if (!prune.masks.empty()) refuse("masks that are given decide what is pruned; leave one out");
  if (!prune.pattern.is_unstructured()) {
    refuse(fmt::format("sparsity_type {}:{} makes every sparsity the same; leave one out",
                       prune.pattern.num_kept, prune.pattern.group_size));
  }
  if (recipe.reconstruct.propagation != Propagation::kDense) {
    refuse("measures the dense model before the run; it wants reconstruct.propagation dense");
  }
  if (!is_owl) return;
  const double most = 2 * prune.owl_lambda;
  if (prune.sparsity - most < 0 || prune.sparsity + most >= 1) {
    refuse(
        fmt::format("a block may get {} more or less than the sparsity of {}, which is no "
                    "fraction any more; choose a smaller prune.owl_lambda",
                    most, prune.sparsity));
  }
}

void check_rate(const ReconstructOptions& reconstruct) {
  if (reconstruct.lr > 0) return;
  if (reconstruct.window.kind == WindowKind::kNone || !trains_adamw(reconstruct)) {
    throw ConfigError("reconstruct.lr: auto: nothing is trained that a rate could be found for");
  }
  if (reconstruct.propagation != Propagation::kDense) {
    throw ConfigError(
        "reconstruct.lr: auto: rates are tried on dense activations; it wants "
        "reconstruct.propagation dense, so that the run meets the same");
  }
}

/// SparseGPT alone then fits its weights to every window there is.
void check_hold_out(ReconstructOptions& reconstruct, JudgedBy judged, Stated fraction) {
  const bool is_judged = judged == JudgedBy::kSweep || reconstruct.window.kind != WindowKind::kNone;
  if (!is_judged && fraction == Stated::kByNobody) reconstruct.validation_fraction = 0;
  if (is_judged && reconstruct.validation_fraction == 0) {
    throw ConfigError(
        "reconstruct.validation_fraction: 0: nothing would be left to judge by; only a run that "
        "prunes and reconstructs nothing can hold out nothing");
  }
}

}  // namespace

void check_recipe(Recipe& recipe, const std::vector<std::string>& keys_set_by_user,
                  JudgedBy judged) {
  const auto stated = [&](const std::string& path) {
    const bool by_user =
        std::any_of(keys_set_by_user.begin(), keys_set_by_user.end(), [&](const std::string& name) {
          const RecipeKey* key = find_recipe_key(name);
          return key != nullptr && key->path() == path;
        });
    return by_user ? Stated::kByUser : Stated::kByNobody;
  };
  check_masks(recipe.prune, stated("prune.method"));
  check_pattern(recipe.prune, stated("prune.sparsity"));
  check_comparison(recipe.prune);
  check_layers(recipe);
  check_units(recipe, stated("reconstruct.ridge"));
  check_allocation(recipe);
  check_rate(recipe.reconstruct);
  check_hold_out(recipe.reconstruct, judged, stated("reconstruct.validation_fraction"));
  if (recipe.reconstruct.window.kind != WindowKind::kNone && recipe.calibration.nsamples < 2) {
    throw ConfigError(
        fmt::format("calibration.nsamples: {}: at least 2 when reconstructing, one to train on and "
                    "one to judge by; or set reconstruct.window to none",
                    recipe.calibration.nsamples));
  }
  if (recipe.prune.statistics == StatisticsOf::kPropagated &&
      recipe.reconstruct.propagation == Propagation::kDense) {
    throw ConfigError(
        "prune.statistics: propagated: the pruned model's activations flow on under "
        "reconstruct.propagation sparse or mixed only");
  }
  recipe.prune.seed = recipe.reconstruct.seed = recipe.calibration.seed;
}

}  // namespace coppice
