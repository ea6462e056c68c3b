// Parsing shared by the subcommands: flags of recipe keys, nearest names for unknown ones.
#pragma once

#include <CLI/CLI.hpp>
#include <map>
#include <string>
#include <vector>

#include "configs/recipe.h"
#include "pipeline/telemetry/progress.h"

namespace coppice {

/// Flags for recipe keys; values are collected as text and applied after the recipe file.
class RecipeFlags {
 public:
  /// `wanted` has sections and paths of keys ("resources", "reconstruct.epochs"); empty: all keys.
  RecipeFlags(CLI::App& app, const std::vector<std::string>& wanted = {});

  /// Sets what was given on `recipe`; returns the keys' paths. Throws ConfigError naming flag and
  /// value.
  std::vector<std::string> apply(Recipe& recipe) const;

 private:
  std::map<std::string, std::vector<std::string>> given_;  // by flag
};

/// Parses; an unknown flag is a ConfigError naming the nearest known one. Returns false when help
/// was asked for (and printed).
bool parse_arguments(CLI::App& app, std::vector<std::string> arguments);

struct CommonFlags {
  bool quiet = false;
  bool verbose = false;
  Verbosity verbosity() const {
    return quiet ? Verbosity::kQuiet : verbose ? Verbosity::kVerbose : Verbosity::kNormal;
  }
};
void add_common_flags(CLI::App& app, CommonFlags& flags);

}  // namespace coppice
