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

/// What configs/architectures/*.yaml say, checked as far as no config.json is needed: every key
/// known and present, every role of the block there once, only forms that the stages compute.
struct Family {
  struct Linear {
    std::string role;
    std::string name;
    std::string input;
    Half half = Half::kAttention;
    std::array<std::string, 2> shape;  // out, in: products of names in `dims`
    std::string bias;                  // "true", "false", or the key of config.json that says so
  };
  struct Norm {
    std::string role;
    std::string name;
    Half half = Half::kAttention;
  };

  std::string name;
  std::vector<std::string> claims;  // entries of `architectures` in config.json
  /// By the name of Architecture's member ("blocks" is num_blocks, "vocab" …): what to try in turn,
  /// each a key of config.json, a product or a quotient of keys.
  std::map<std::string, std::vector<std::string>> dims;
  std::string embedding, final_norm, head;  // tensor names
  std::string tied;                         // key of config.json
  std::string block_prefix;
  std::string norm_epsilon;  // key of config.json
  std::string activation;    // key of config.json
  std::vector<Norm> norms;
  std::vector<Linear> linears;
  std::map<std::string, UnitSpec> units;
};

/// Reads a description. `file` is what messages call it. Throws ConfigError "<file>:<line>: <key
/// path>: …".
Family parse_family(const std::string& file, const std::string& yaml);

/// Computes "a", "a * b" or "a / b" (and longer ones, from the left) over names; nothing where a
/// name has no value. Throws ConfigError, without a location, for a quotient that leaves a
/// remainder, a division by zero, an overflow, and what is no such expression.
std::optional<int64_t> evaluate_size(
    const std::string& expression,
    const std::function<std::optional<int64_t>(const std::string& name)>& value);

}  // namespace coppice
