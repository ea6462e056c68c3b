#include "stages/targets.h"

#include <fmt/format.h>

#include <algorithm>
#include <regex>
#include <stdexcept>

namespace coppice {
namespace {

/// Looks at every pattern even when the answer is known: a wrong one is reported on the first
/// linear.
bool matches_any(const std::vector<std::string>& patterns, const std::string& linear) {
  return std::count_if(patterns.begin(), patterns.end(), [&](const std::string& pattern) {
           return names_linear(pattern, linear);
         }) > 0;
}

/// The first rule that names it, else its block's, else the one number.
double sparsity_of(const PruneOptions& options, int block, const std::string& linear) {
  for (const SparsityRule& rule : options.sparsity_map) {
    if (names_linear(rule.pattern, linear)) return rule.sparsity;
  }
  return options.block_sparsities.empty() ? options.sparsity
                                          : options.block_sparsities.at(static_cast<size_t>(block));
}

}  // namespace

bool names_linear(const std::string& pattern, const std::string& linear) {
  static const std::string kExpression = "re:";
  if (pattern.compare(0, kExpression.size(), kExpression) == 0) {
    try {
      const std::regex expression(pattern.substr(kExpression.size()), std::regex::ECMAScript);
      return std::regex_search(linear, expression, std::regex_constants::match_continuous);
    } catch (const std::regex_error& error) {
      throw std::invalid_argument(fmt::format(
          "pattern '{}' is no ECMAScript regular expression: {}", pattern, error.what()));
    }
  }
  if (linear == pattern) return true;
  const std::string tail = "." + pattern;
  return linear.size() > tail.size() &&
         linear.compare(linear.size() - tail.size(), tail.size(), tail) == 0;
}

bool is_target(const PruneOptions& options, const std::string& linear) {
  const bool is_wanted = options.targets.empty() || matches_any(options.targets, linear);
  const bool is_ignored = matches_any(options.ignore, linear);
  return is_wanted && !is_ignored;
}

std::vector<Target> targets_of(const Architecture& architecture, HalfRange halves,
                               const PruneOptions& options) {
  std::vector<Target> targets;
  for (int half = halves.first; half < halves.last; ++half) {
    const int block = half / 2;
    for (const LinearSpec& spec : architecture.linears) {
      if (spec.half != half_of(half)) continue;
      const std::string linear = in_block(architecture, block, spec.name);
      if (!is_target(options, linear)) continue;
      targets.push_back({spec, half, linear + ".weight", in_block(architecture, block, spec.input),
                         sparsity_of(options, block, linear)});
    }
  }
  return targets;
}

std::string pattern_name(const SparsityPattern& pattern) {
  if (pattern.is_unstructured()) return "unstructured";
  return fmt::format("{}:{}", pattern.num_kept, pattern.group_size);
}

void require_whole_groups(const Target& target, const SparsityPattern& pattern) {
  if (pattern.is_unstructured() || target.spec.in % pattern.group_size == 0) return;
  throw std::invalid_argument(fmt::format(
      "{}: in = {} is no multiple of {}, as pattern {} wants; ignore this linear or take "
      "another pattern",
      target.tensor, target.spec.in, pattern.group_size, pattern_name(pattern)));
}

}  // namespace coppice
