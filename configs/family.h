// A family of models as its description states it: names and expressions, no checkpoint's numbers.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "stages/model/architecture.h"

namespace coppice {

/// What may differ between checkpoints of a family, tried in turn; the first that is there counts:
/// for sizes keys of config.json, whole numbers, products and quotients of them; for facts keys,
/// "true" and "false" (none there: false).
using Alternatives = std::vector<std::string>;

/// What configs/architectures/*.yaml say, checked as far as no config.json is needed: every key
/// known and present, every role of the block there once and in its place, only forms that the
/// stages compute.
struct Family {
  struct Linear {
    std::string role;
    std::string name;
    std::string input;
    Half half = Half::kAttention;
    std::array<std::string, 2> shape;  // out, in: products of names in `dims`
    Alternatives bias;                 // a fact
  };
  struct Norm {
    enum class Place { kAroundHalf, kOverHeads };
    std::string role;  // kAroundHalf: "attention", "mlp", and the placement tells which side
    std::string name;
    Half half = Half::kAttention;
    Place place = Place::kAroundHalf;
  };
  /// How many tokens one attends to.
  struct Window {
    Alternatives size;        // null in config.json: none
    Alternatives used;        // a fact
    Alternatives from_block;  // a size: blocks before it see all
    std::string kinds;        // key: a list of sliding_attention or full_attention; goes before
  };
  /// A mixture of experts instead of one MLP: the linears of the MLP half are those of an expert,
  /// with "{expert}" in name and input where its number goes.
  struct Experts {
    std::string router;       // empty: there are none
    Alternatives sum_to_one;  // a fact
    bool round_weights = false;
  };
  struct FinalNorm {
    std::string name;
    Alternatives where;  // facts; there unless the second holds
    Alternatives unless;
  };

  std::string name;
  std::vector<std::string> claims;              // entries of `architectures` in config.json
  std::map<std::string, std::string> required;  // key → the one value that is computed
  /// By the name of Architecture's member ("blocks" is num_blocks, "vocab" …).
  std::map<std::string, Alternatives> dims;
  std::string embedding, project_in, token_types, positions, embedding_norm, project_out, head;
  int64_t first_position_row = 0;
  FinalNorm final_norm;
  Alternatives tied;  // a fact
  std::string block_prefix;
  NormKind norm_kind = NormKind::kRms;
  std::string norm_epsilon;   // key of config.json, or a number
  Alternatives norms_before;  // a fact: norms are before their half, not after its residual sum
  AttentionMask mask = AttentionMask::kCausal;
  bool is_rotary = false;
  Window window;
  MlpKind mlp_kind = MlpKind::kGated;
  std::string activation;  // key of config.json
  Experts experts;
  std::vector<Norm> norms;
  std::vector<Linear> linears;
  std::map<std::string, UnitSpec> units;
};

/// Reads a description. `file` is what messages call it. Throws ConfigError "<file>:<line>: <key
/// path>: …".
Family parse_family(const std::string& file, const std::string& yaml);

/// Computes "a", "a * b" or "a / b" (and longer ones, from the left) over names and whole numbers;
/// nothing where a name has no value. Throws ConfigError, without a location, for a quotient that
/// leaves a remainder, a division by zero, an overflow, and what is no such expression.
std::optional<int64_t> evaluate_size(
    const std::string& expression,
    const std::function<std::optional<int64_t>(const std::string& name)>& value);

}  // namespace coppice
