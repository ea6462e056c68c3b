#include "pipeline/run_checks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>

#include <algorithm>
#include <cerrno>

#include "configs/errors.h"           // ConfigError
#include "stages/layer_similarity.h"  // num_removed_layers
#include "stages/targets.h"           // is_target
#include "stages/units/slice.h"
#include "stages/units/targeted_units.h"
#include "stages/units/unit_scores.h"  // num_kept_units

namespace coppice {

namespace fs = std::filesystem;

namespace {

bool predicts_next_token(const Architecture& architecture) {
  return architecture.mask == AttentionMask::kCausal && !architecture.head.empty();
}

/// Every linear of the blocks.
std::vector<std::string> linears_of(const Architecture& architecture) {
  std::vector<std::string> names;
  for (int block = 0; block < architecture.num_blocks; ++block) {
    for (const LinearSpec& linear : architecture.linears) {
      names.push_back(in_block(architecture, block, linear.name));
    }
  }
  return names;
}

/// Those that read neurons or heads: by their names units are targeted.
std::vector<std::string> consumers_of(const Architecture& architecture) {
  std::vector<std::string> names;
  for (int block = 0; block < architecture.num_blocks; ++block) {
    for (const LinearSpec& linear : architecture.linears) {
      if (!reads_units(architecture, linear)) continue;
      names.push_back(in_block(architecture, block, linear.name));
    }
  }
  return names;
}

/// The routers of the blocks.
std::vector<std::string> routers_of(const Architecture& architecture) {
  std::vector<std::string> names;
  for (int block = 0; block < architecture.num_blocks && architecture.experts.count > 0; ++block) {
    names.push_back(in_block(architecture, block, architecture.experts.router));
  }
  return names;
}

bool names_any(const std::string& pattern, const std::vector<std::string>& linears) {
  return std::any_of(linears.begin(), linears.end(),
                     [&](const std::string& linear) { return names_linear(pattern, linear); });
}

/// A pattern that names nothing is a mistake, and an expensive one if it is found in the morning.
void require_named(const std::string& key, const std::string& pattern,
                   const std::vector<std::string>& linears,
                   const std::vector<std::string>& routers = {}) {
  if (names_any(pattern, linears)) return;
  if (names_any(pattern, routers)) {
    throw ConfigError(fmt::format(
        "{}: {}: names {}: an MoE router is never pruned", key, pattern,
        *std::find_if(routers.begin(), routers.end(),
                      [&](const std::string& router) { return names_linear(pattern, router); })));
  }
  throw ConfigError(
      fmt::format("{}: {}: names no linear of the model, whose linears are called as {} is; a "
                  "whole name or its last parts are wanted, or re: and an expression that "
                  "matches from the start",
                  key, pattern, linears.front()));
}

void require_patterns_named(const PruneOptions& prune, const Architecture& architecture) {
  std::vector<std::string> linears =
      removes_units(prune.method) ? consumers_of(architecture) : linears_of(architecture);
  const std::vector<std::string> routers = routers_of(architecture);
  for (const std::string& pattern : prune.targets) {
    require_named("prune.targets", pattern, linears, routers);
  }
  for (const SparsityRule& rule : prune.sparsity_map) {
    require_named("prune.sparsity_map", rule.pattern, linears, routers);
  }
  linears.insert(linears.end(), routers.begin(), routers.end());
  for (const NamedShape& outer : outer_tensors(architecture)) {
    linears.push_back(outer.name.substr(0, outer.name.rfind('.')));
  }
  linears.push_back("lm_head");  // never pruned, whether there is one or not
  for (const std::string& pattern : prune.ignore) require_named("prune.ignore", pattern, linears);
}

/// A share that removes nothing is a mistake, and an expensive one if it is found in the morning.
void require_removed(const Architecture& architecture, const PruneOptions& prune) {
  bool any_removed = false;
  for (int half = 0; half < 2 * architecture.num_blocks; ++half) {
    for (const auto& [units, sparsity] : targeted_units(architecture, half, prune)) {
      if (sparsity <= 0) continue;
      any_removed = true;
      if (num_kept_units(sparsity, units, prune.head_units) < units.count) continue;
      throw ConfigError(fmt::format(
          "prune.{}: {}: of the {} {} that {} reads that is none{}",
          units.kind == UnitLayout::Kind::kHeads ? "head_sparsity" : "ffn_sparsity", sparsity,
          units.count, units.kind == UnitLayout::Kind::kHeads ? "heads" : "neurons",
          units.consumer->name,
          units.per_shared > 1 && prune.head_units != HeadUnits::kQuery
              ? fmt::format(", by head_units, of which {} share a key-value head", units.per_shared)
              : ""));
    }
  }
  if (any_removed) return;
  throw ConfigError(
      "prune.targets, ignore, sparsity_map: no neuron and no head would go; they are named by the "
      "linears that read them (down_proj, o_proj)");
}

/// What scores units by the loss computes with the checkpoint as it is stored.
void require_loss(const Architecture& architecture) {
  constexpr const char* kOthers = "choose flap or wanda_sp";
  if (!predicts_next_token(architecture)) {
    throw ConfigError(
        fmt::format("prune.method: snip: needs a loss, and a {} model predicts no next token; {}",
                    architecture.family, kOthers));
  }
  if (architecture.scale_block.is_there()) {
    throw ConfigError(fmt::format(
        "prune.method: snip: takes derivatives by weights, and FP8 weights have none; {}",
        kOthers));
  }
}

void require_one_shape(const PruneOptions& prune, const Architecture& architecture) {
  if (!prune.is_sliced) return;
  try {
    sliced_architecture(architecture, prune);
  } catch (const std::invalid_argument& error) {
    throw ConfigError(fmt::format("prune.structured_output: sliced: {}", error.what()));
  }
}

void check_layers(const PruneOptions& prune, const Architecture& architecture) {
  if (prune.method != PruneMethod::kSimilarity) return;
  const auto num_blocks = int(architecture.num_blocks);
  const int layers = num_layers(prune.layer_units, num_blocks);
  if (num_removed_layers(prune, num_blocks) >= layers) {
    throw ConfigError(
        fmt::format("prune.layer_sparsity: {}: of the {} layers of the model that leaves none",
                    prune.layer_sparsity, layers));
  }
  require_one_shape(prune, architecture);
}

void check_units(const Recipe& recipe, const Architecture& architecture) {
  const PruneOptions& prune = recipe.prune;
  if (!removes_units(prune.method)) return;
  if (prune.method == PruneMethod::kSnip) require_loss(architecture);
  require_removed(architecture, prune);
  require_one_shape(prune, architecture);
  if (recipe.reconstruct.solver != Solver::kBias ||
      recipe.reconstruct.window.kind == WindowKind::kNone) {
    return;
  }
  for (int half = 0; half < 2 * architecture.num_blocks; ++half) {
    for (const auto& [units, sparsity] : targeted_units(architecture, half, prune)) {
      if (sparsity <= 0 || units.consumer->has_bias) continue;
      throw ConfigError(fmt::format("reconstruct.solver: bias: {} has no bias{}",
                                    units.consumer->name,
                                    units.consumer->bias_key.empty()
                                        ? ", and its class has no place for one; liar does without"
                                        : "; add_biases gives it one, liar does without"));
    }
  }
}

}  // namespace

void check_against_model(const Recipe& recipe, const Architecture& architecture,
                         const TokenWindows& tokens) {
  require_patterns_named(recipe.prune, architecture);
  if (recipe.reconstruct.window.blocks > architecture.num_blocks) {
    throw ConfigError(fmt::format("reconstruct.window: {} blocks: the model has {}",
                                  recipe.reconstruct.window.blocks, architecture.num_blocks));
  }
  const ReconstructOptions& reconstruct = recipe.reconstruct;
  if (architecture.experts.count > 0 && reconstruct.window.kind == WindowKind::kMatrix &&
      reconstruct.propagation == Propagation::kMixed) {
    throw ConfigError(
        "reconstruct.window: matrix: mixed propagation compares what a linear reads in the pruned "
        "and in the dense model token by token, and tokens reach other experts there; choose "
        "another window or another propagation");
  }
  const size_t given = recipe.prune.block_sparsities.size();
  if (given != 0 && given != size_t(architecture.num_blocks)) {
    throw ConfigError(
        fmt::format("prune.block_sparsities: {} numbers for a model of {} blocks: one a block is "
                    "wanted",
                    given, architecture.num_blocks));
  }
  const SparsityPattern& pattern = recipe.prune.pattern;
  bool any_target = false;
  for (const LinearSpec& linear : architecture.linears) {
    const std::string name = in_block(architecture, 0, linear.name);
    const bool target = is_target(recipe.prune, name);
    any_target = any_target || target;
    if (target && !pattern.is_unstructured() && linear.in % pattern.group_size != 0) {
      throw ConfigError(fmt::format(
          "prune.sparsity_type: {}:{}: {} has {} inputs, which {} does not divide; ignore it with "
          "prune.ignore or choose another M",
          pattern.num_kept, pattern.group_size, name, linear.in, pattern.group_size));
    }
  }
  for (int block = 1; block < architecture.num_blocks && !any_target; ++block) {
    for (const LinearSpec& linear : architecture.linears) {
      any_target =
          any_target || is_target(recipe.prune, in_block(architecture, block, linear.name));
    }
  }
  if (!any_target) {
    throw ConfigError("prune.targets and prune.ignore leave no linear of the model to prune");
  }
  check_layers(recipe.prune, architecture);
  check_units(recipe, architecture);
  check_positions(architecture, tokens.seqlen);
}

void check_held_out(const TokenWindows& tokens) {
  if (tokens.count() >= 2) return;
  throw ConfigError(fmt::format(
      "calibration.nsamples: {}: these sequences, of {} tokens together, fill one window "
      "of {}, and at least two are wanted, one to work with and one to judge by; give "
      "more of them or a smaller seqlen",
      tokens.num_sequences(), tokens.num_tokens(), tokens.seqlen));
}

void check_positions(const Architecture& architecture, int64_t seqlen) {
  if (seqlen > architecture.max_positions && architecture.max_positions > 0) {
    throw ConfigError(fmt::format("calibration.seqlen: {}: the model has {} positions", seqlen,
                                  architecture.max_positions));
  }
}

void require_next_token(const fs::path& directory, const Architecture& architecture,
                        const std::string& what) {
  if (predicts_next_token(architecture)) return;
  throw ConfigError(fmt::format("{}: a {} model predicts no next token: {}", directory.string(),
                                architecture.family, what));
}

namespace {

bool is_at_or_below(const fs::path& path, const fs::path& above) {
  const fs::path inner = fs::weakly_canonical(fs::absolute(path));
  const fs::path outer = fs::weakly_canonical(fs::absolute(above));
  return std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end();
}

void require_nothing_beside(const fs::path& output, const std::vector<fs::path>& ours) {
  if (!fs::exists(output)) return;
  for (const fs::directory_entry& entry : fs::directory_iterator(output)) {
    const bool is_ours = std::any_of(ours.begin(), ours.end(), [&](const fs::path& path) {
      return !path.empty() && is_at_or_below(path, entry.path());
    });
    if (is_ours) continue;
    throw ConfigError(
        fmt::format("--output-dir: {}: not empty, and not of a run to be continued; choose "
                    "another directory or remove it",
                    output.string()));
  }
}

}  // namespace

void check_output_directory(const fs::path& output, const fs::path& work, const fs::path& model,
                            const fs::path& trace) {
  if (fs::weakly_canonical(output) == fs::weakly_canonical(model)) {
    throw ConfigError(fmt::format(
        "--output-dir: {}: that is the model itself, which is never written to", output.string()));
  }
  if (fs::weakly_canonical(output) == fs::weakly_canonical(work)) {
    throw ConfigError(fmt::format(
        "--work-dir: {}: that is the output directory; what is removed at the end of a run wants a "
        "place of its own",
        work.string()));
  }
  if (!fs::exists(work / "journal.bin")) require_nothing_beside(output, {work, trace});
}

UniqueFd lock_output(const fs::path& output, const std::vector<fs::path>& ours, bool is_resumed) {
  UniqueFd directory(::open(output.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  const bool is_taken = flock(directory.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  if (is_taken) {
    throw ConfigError(fmt::format(
        "--output-dir: {}: another run writes there; wait until it ends, or choose another "
        "directory",
        output.string()));
  }
  if (!is_resumed) require_nothing_beside(output, ours);  // since it was looked at first
  return directory;
}

void remove_unfinished(const fs::path& directory) {
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    const fs::path& file = entry.path();
    const bool is_probe = file.filename().string().starts_with(".coppice-probe-");
    if (is_probe || file.extension() == ".tmp") fs::remove(file);
  }
}

}  // namespace coppice
