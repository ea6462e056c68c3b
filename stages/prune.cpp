#include "stages/prune.h"

#include <fmt/format.h>

#include <algorithm>
#include <regex>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "stages/errors.h"  // NumericalError
#include "stages/finite.h"
#include "stages/ops/mask_select.h"   // scores → mask
#include "stages/scores/magnitude.h"  // weights → scores
#include "stages/scores/wanda.h"

namespace coppice {
namespace {

/// One linear of the window, with its names spelled out.
struct Target {
  const LinearSpec& spec;
  std::string tensor;     // full name of its weight
  std::string statistic;  // full name of what it reads
};

std::vector<Target> targets_of(const Architecture& architecture, HalfRange halves,
                               const PruneOptions& options) {
  std::vector<Target> targets;
  for (int half = halves.first; half < halves.last; ++half) {
    const int block = half / 2;
    for (const LinearSpec& spec : architecture.linears) {
      if (spec.half != half_of(half)) continue;
      const std::string linear = in_block(architecture, block, spec.name);
      if (!is_target(options, linear)) continue;
      targets.push_back({spec, linear + ".weight", in_block(architecture, block, spec.input)});
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

// ---- one switch per enum ----------------------------------------------------------------------

std::string_view method_name(PruneMethod method) {
  switch (method) {
    case PruneMethod::kMagnitude:
      return "magnitude";
    case PruneMethod::kWanda:
      return "wanda";
  }
  throw std::logic_error("prune: unknown method");
}

Products needs_of(PruneMethod method) {
  switch (method) {
    case PruneMethod::kMagnitude:
      return Products::kNone;
    case PruneMethod::kWanda:
      return Products::kStatistics;
  }
  throw std::logic_error("prune: unknown method");
}

const InputStatistics& statistics_of(const SpanJob& span, const Target& target) {
  const auto found = span.statistics.find(target.statistic);
  if (found != span.statistics.end()) return found->second;
  throw std::logic_error(
      fmt::format("{}: no statistics of its input '{}' among {} of the span; the "
                  "dense forward has to gather them before",
                  target.tensor, target.statistic, span.statistics.size()));
}

/// [out, in] fp32: the smallest are pruned first.
at::Tensor score(PruneMethod method, const SpanJob& span, const Target& target,
                 const at::Tensor& weight) {
  switch (method) {
    case PruneMethod::kMagnitude:
      return magnitude_score(weight);
    case PruneMethod::kWanda:
      return wanda_score(weight, statistics_of(span, target).column_norm());
  }
  throw std::logic_error("prune: unknown method");
}

/// Wanda compares the weights of one output: the column norms tell inputs apart, not outputs.
Comparison comparison_of(const PruneOptions& options) {
  return options.method == PruneMethod::kWanda ? Comparison::kRow : options.comparison;
}

at::Tensor select(const PruneOptions& options, const at::Tensor& scores) {
  if (!options.pattern.is_unstructured()) {
    return keep_mask_n_of_m(scores, options.pattern.num_kept, options.pattern.group_size);
  }
  switch (comparison_of(options)) {
    case Comparison::kRow:
      return keep_mask_by_row(scores, options.sparsity);
    case Comparison::kMatrix:
      return keep_mask_by_matrix(scores, options.sparsity);
  }
  throw std::logic_error("prune: unknown comparison");
}

// -----------------------------------------------------------------------------------------------

at::Tensor named_mask(const PruneOptions& options, const SpanJob& span, const Target& target,
                      const at::Tensor& weight) {
  const at::Tensor scores = score(options.method, span, target, weight);
  try {
    return select(options, scores);
  } catch (const NumericalError&) {
    require_finite("score of " + target.tensor, scores);  // the same, by the tensor's name
    throw;
  }
}

/// Writes weight · mask to `pruned`, in the weight's dtype. Adding 0 turns a −0 of the checkpoint
/// into +0, so that every zero of a pruned tensor is the same bytes.
void write_masked(const at::Tensor& weight, const at::Tensor& mask, at::Tensor& pruned) {
  pruned.copy_(weight).add_(0).masked_fill_(mask.logical_not(), 0);
}

double counted_sparsity(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  const int64_t num_zeros = tensor.numel() - tensor.count_nonzero().item<int64_t>();
  return static_cast<double>(num_zeros) / static_cast<double>(tensor.numel());
}

void prune_linear(const PruneOptions& options, const SpanJob& span, const Target& target,
                  KeepMasks keep, Variant& variant) {
  require_whole_groups(target, options.pattern);
  const at::Tensor& weight = span.dense.linears.at(target.spec.role).weight;
  const at::Tensor mask = named_mask(options, span, target, weight);
  at::Tensor& pruned = variant.room_for(target.tensor, weight);
  write_masked(weight, mask, pruned);
  variant.linears.push_back({target.tensor, std::string(method_name(options.method)),
                             pattern_name(options.pattern), counted_sparsity(pruned)});
  if (keep == KeepMasks::kYes) variant.masks[target.tensor] = mask;
}

bool matches(const std::string& pattern, const std::string& linear) {
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

/// Looks at every pattern even when the answer is known: a wrong one is reported on the first
/// linear.
bool matches_any(const std::vector<std::string>& patterns, const std::string& linear) {
  return std::count_if(patterns.begin(), patterns.end(),
                       [&](const std::string& pattern) { return matches(pattern, linear); }) > 0;
}

}  // namespace

bool is_target(const PruneOptions& options, const std::string& linear) {
  const bool is_wanted = options.targets.empty() || matches_any(options.targets, linear);
  const bool is_ignored = matches_any(options.ignore, linear);
  return is_wanted && !is_ignored;
}

Products Prune::needs() const { return needs_of(options_.method); }

Products Prune::gives() const {
  return keep_ == KeepMasks::kYes ? Products::kMasks : Products::kNone;
}

/// No products, no hidden states. Held at most: the masks that are kept, and for the largest target
/// its scores in fp32, its mask and the opposite of it. The weights are the slot's, the pruned ones
/// the output's.
Cost Prune::cost(const SpanShape& shape) const {
  int64_t num_targeted = 0, largest = 0;
  for (const Target& target : targets_of(shape.architecture, shape.halves, options_)) {
    const int64_t size = target.spec.out * target.spec.in;
    num_targeted += size;
    largest = std::max(largest, size);
  }
  Cost cost;
  // Scored, copied, masked, zeros counted. These passes over bytes and halves run slower than their
  // bytes would on full vectors: weighted by what was measured.
  cost.bytes_touched = 80.0 * static_cast<double>(num_targeted);
  cost.weights_selected = static_cast<double>(num_targeted);
  const int64_t kept_masks = keep_ == KeepMasks::kYes ? num_targeted : largest;
  cost.bytes_held = static_cast<double>(kept_masks + largest * (4 + 1));
  return cost;
}

void Prune::run(WindowJob& job) const {
  if (job.variant == nullptr) throw std::logic_error("prune: the window job has no variant");
  for (const Target& target : targets_of(job.span.architecture, job.halves, options_)) {
    prune_linear(options_, job.span, target, keep_, *job.variant);
  }
}

}  // namespace coppice
