#include "stages/prune.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <string_view>
#include <utility>

#include "stages/bitmask.h"
#include "stages/errors.h"  // NumericalError
#include "stages/finite.h"
#include "stages/ops/mask_select.h"  // scores → mask
#include "stages/scores/magnitude.h"
#include "stages/scores/random.h"
#include "stages/scores/ria.h"
#include "stages/scores/sparsegpt.h"
#include "stages/scores/wanda.h"
#include "stages/seed.h"
#include "stages/targets.h"

namespace coppice {
namespace {

// Of SparseGPT's Hessian. What does not factorise is damped ten times more, and again.
constexpr double kDamping = 0.01;
constexpr int kDampingRetries = 3;

/// What was decided for one linear.
struct Decision {
  at::Tensor mask;    // bool [out, in]: true is kept
  at::Tensor values;  // [out, in], any float type: of the kept weights
  PruneMethod method;
  std::string fallback = {};  // empty, or why the method is not the one that was asked for
};

/// The factor of the last input seen: linears that read the same share it.
struct SharedFactor {
  std::string statistic;
  std::optional<at::Tensor> factor;
  bool is_empty = false;  // no token went into it: an expert that only held-out windows reach
};

// ---- one switch per enum ----------------------------------------------------------------------

std::string_view method_name(PruneMethod method) {
  switch (method) {
    case PruneMethod::kRandom:
      return "random";
    case PruneMethod::kMagnitude:
      return "magnitude";
    case PruneMethod::kWanda:
      return "wanda";
    case PruneMethod::kRia:
      return "ria";
    case PruneMethod::kSparseGpt:
      return "sparsegpt";
    case PruneMethod::kGiven:
      return "given";
    case PruneMethod::kSimilarity:
      break;  // see RemoveLayers
    case PruneMethod::kRandomSp:
    case PruneMethod::kMagnitudeSp:
    case PruneMethod::kWandaSp:
    case PruneMethod::kFlap:
    case PruneMethod::kSnip:
      break;  // see PruneUnits
  }
  throw std::logic_error("prune: not a method of single weights");
}

Products needs_of(PruneMethod method) {
  switch (method) {
    case PruneMethod::kRandom:
    case PruneMethod::kMagnitude:
    case PruneMethod::kGiven:
      return Products::kNone;
    case PruneMethod::kWanda:
    case PruneMethod::kRia:
      return Products::kStatistics;
    case PruneMethod::kSparseGpt:  // norms for what it falls back to
      return Products::kStatistics | Products::kGram;
    case PruneMethod::kSimilarity:
      break;  // see RemoveLayers
    case PruneMethod::kRandomSp:
    case PruneMethod::kMagnitudeSp:
    case PruneMethod::kWandaSp:
    case PruneMethod::kFlap:
    case PruneMethod::kSnip:
      break;  // see PruneUnits
  }
  throw std::logic_error("prune: not a method of single weights");
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
at::Tensor score(PruneMethod method, const PruneOptions& options, const SpanJob& span,
                 const Target& target, const at::Tensor& weight) {
  switch (method) {
    case PruneMethod::kRandom:
      return random_score(weight, seed_of(options.seed, target.tensor));
    case PruneMethod::kMagnitude:
      return magnitude_score(weight);
    case PruneMethod::kWanda:
      return wanda_score(weight, statistics_of(span, target).column_norm());
    case PruneMethod::kRia:
      return ria_score(weight, statistics_of(span, target).column_norm());
    case PruneMethod::kSparseGpt:
    case PruneMethod::kGiven:
      break;  // no scores: see decide()
    case PruneMethod::kSimilarity:
      break;  // see RemoveLayers
    case PruneMethod::kRandomSp:
    case PruneMethod::kMagnitudeSp:
    case PruneMethod::kWandaSp:
    case PruneMethod::kFlap:
    case PruneMethod::kSnip:
      break;  // see PruneUnits
  }
  throw std::logic_error("prune: a method without a score");
}

/// Wanda compares the weights of one output: the column norms tell inputs apart, not outputs.
Comparison comparison_of(PruneMethod method, Comparison asked) {
  if (method == PruneMethod::kWanda) return Comparison::kRow;
  if (asked != Comparison::kAuto) return asked;
  return method == PruneMethod::kRia ? Comparison::kMatrix : Comparison::kRow;
}

at::Tensor select(PruneMethod method, const PruneOptions& options, double sparsity,
                  const at::Tensor& scores) {
  if (!options.pattern.is_unstructured()) {
    return keep_mask_n_of_m(scores, options.pattern.num_kept, options.pattern.group_size);
  }
  return comparison_of(method, options.comparison) == Comparison::kMatrix
             ? keep_mask_by_matrix(scores, sparsity)
             : keep_mask_by_row(scores, sparsity);
}

// -----------------------------------------------------------------------------------------------

Decision decide_as_given(const Variant& variant, const Target& target, const at::Tensor& weight) {
  const at::Tensor& given = variant.given_masks.at(target.tensor);
  const bool is_packed = given.scalar_type() == at::kByte;
  return {is_packed ? unpack_bitmask(given, target.spec.in) : given.ne(0), weight,
          PruneMethod::kGiven};
}

Decision decide_by_score(PruneMethod method, const PruneOptions& options, const SpanJob& span,
                         const Target& target, const at::Tensor& weight) {
  const at::Tensor scores = score(method, options, span, target, weight);
  try {
    return {select(method, options, target.sparsity, scores), weight, method};
  } catch (const NumericalError&) {
    require_finite("score of " + target.tensor, scores);  // the same, by the tensor's name
    throw;
  }
}

std::optional<at::Tensor> damped_factor(const at::Tensor& gram) {
  double damping = kDamping;
  for (int attempt = 0; attempt <= kDampingRetries; ++attempt, damping *= 10) {
    if (std::optional<at::Tensor> factor = inverse_factor(gram, damping)) return factor;
  }
  return std::nullopt;
}

Decision decide_by_sweep(const PruneOptions& options, const SpanJob& span, const Target& target,
                         const at::Tensor& weight, SharedFactor& shared) {
  const at::Tensor& gram = statistics_of(span, target).gram;
  if (shared.statistic != target.statistic) {
    shared = {};  // before the next one is made
    shared.statistic = target.statistic;
    shared.is_empty = !gram.diagonal().any().item<bool>();
    if (!shared.is_empty) shared.factor = damped_factor(gram);
  }
  if (!shared.factor) {
    Decision decision = decide_by_score(PruneMethod::kWanda, options, span, target, weight);
    decision.fallback =
        shared.is_empty
            ? "only held-out calibration tokens were routed to it"
            : fmt::format(
                  "the Gram matrix of its input is not positive definite, not even with a "
                  "damping of {:g}",
                  kDamping * 1e3);
    return decision;
  }
  try {
    SweptWeight swept = sweep_columns(weight, gram.diagonal().eq(0), *shared.factor,
                                      target.sparsity, options.pattern);
    return {std::move(swept.mask), std::move(swept.weight), PruneMethod::kSparseGpt};
  } catch (const NumericalError&) {
    require_finite(target.tensor, weight);  // the same, by the tensor's name
    throw;
  }
}

/// Writes values · mask to `pruned`, in its dtype. Adding 0 turns a −0 of the checkpoint into +0,
/// so that every zero of a pruned tensor is the same bytes.
void write_masked(const Decision& decision, at::Tensor& pruned) {
  pruned.copy_(decision.values).add_(0).masked_fill_(decision.mask.logical_not(), 0);
}

/// Whether its input was seen at all, where the method asks: an expert's may not have been.
bool is_starved(const PruneOptions& options, const SpanJob& span, const Target& target) {
  return needs_of(options.method) != Products::kNone && statistics_of(span, target).tokens == 0;
}

Decision decide(const PruneOptions& options, const SpanJob& span, const Target& target,
                const at::Tensor& weight, const Variant& variant, SharedFactor& shared) {
  if (options.method == PruneMethod::kGiven) return decide_as_given(variant, target, weight);
  if (is_starved(options, span, target)) {
    Decision decision = decide_by_score(PruneMethod::kMagnitude, options, span, target, weight);
    decision.fallback = kNoTokenRouted;
    return decision;
  }
  if (options.method == PruneMethod::kSparseGpt) {
    return decide_by_sweep(options, span, target, weight, shared);
  }
  return decide_by_score(options.method, options, span, target, weight);
}

void prune_linear(const PruneOptions& options, const SpanJob& span, const Target& target,
                  KeepMasks keep, SharedFactor& shared, Variant& variant) {
  if (options.method == PruneMethod::kGiven && !variant.given_masks.contains(target.tensor)) return;
  require_whole_groups(target, options.pattern);
  const at::Tensor& weight = span.dense_at(target.half).linears.at(target.spec.role).weight;
  const Decision decision = decide(options, span, target, weight, variant, shared);
  at::Tensor& pruned = variant.room_for(target.tensor, weight);
  write_masked(decision, pruned);
  variant.linears.push_back({target.tensor, std::string(method_name(decision.method)),
                             pattern_name(options.pattern), share_of_zeros(pruned), pruned.numel(),
                             decision.fallback});
  if (decision.method == PruneMethod::kSparseGpt) {
    require_finite(target.tensor + " after the sweep", pruned);
    variant.mark_trained(target.tensor);
  }
  if (keep == KeepMasks::kYes) variant.masks[target.tensor] = decision.mask;
  if (options.export_masks) variant.bitmasks[target.tensor] = pack_bitmask(decision.mask);
}

}  // namespace

Products Prune::needs() const { return needs_of(options_.method); }

Products Prune::gives() const {
  return keep_ == KeepMasks::kYes ? Products::kMasks : Products::kNone;
}

/// No hidden states. Held at most: the masks that are kept, and for the largest target its scores
/// in fp32, its mask and the opposite of it. The weights are the slot's, the pruned ones the
/// output's. SparseGPT holds the factor of an input, beside it a triangle and the identity while it
/// is made, and the weight in fp32 with a lazy block of errors.
Cost Prune::cost(const SpanShape& shape) const {
  const bool sweeps = options_.method == PruneMethod::kSparseGpt;
  int64_t num_targeted = 0, largest = 0;
  double factor_bytes = 0;
  std::string factored;
  Cost cost;
  for (const Target& target : targets_of(shape.architecture, shape.halves, options_)) {
    const int64_t out = target.spec.out, in = target.spec.in;
    num_targeted += out * in;
    largest = std::max(largest, out * in);
    if (!sweeps) continue;
    cost.product_flop += sweep_flop(out, in);
    if (target.statistic != factored) cost.product_flop += inverse_factor_flop(in);
    factored = target.statistic;
    factor_bytes = std::max(factor_bytes, 3.0 * 4 * static_cast<double>(in * in));
  }
  // Scored, copied, masked, zeros counted. These passes over bytes and halves run slower than their
  // bytes would on full vectors: weighted by what was measured.
  cost.bytes_touched = 80.0 * static_cast<double>(num_targeted);
  cost.weights_selected = static_cast<double>(num_targeted);
  const int64_t kept_masks = keep_ == KeepMasks::kYes ? num_targeted : largest;
  const int64_t copies = options_.method == PruneMethod::kRia || sweeps ? 2 : 1;  // in fp32
  cost.bytes_held = static_cast<double>(kept_masks + largest * (4 * copies + 1)) + factor_bytes;
  return cost;
}

void Prune::run(WindowJob& job) const {
  if (job.variant == nullptr) throw std::logic_error("prune: the window job has no variant");
  SharedFactor shared;
  for (const Target& target : targets_of(job.span.architecture, job.halves, options_)) {
    prune_linear(options_, job.span, target, keep_, shared, *job.variant);
  }
}

}  // namespace coppice
