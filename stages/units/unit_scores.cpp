#include "stages/units/unit_scores.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "stages/finite.h"
#include "stages/seed.h"

namespace coppice {
namespace {

/// [in] fp64: of every column that reads a unit.
at::Tensor column_scores(PruneMethod method, const at::Tensor& weight,
                         const InputStatistics& statistics) {
  // In doubles, so that the order of the sums hardly ever decides which of two units goes.
  const at::Tensor values = weight.to(at::kDouble);
  switch (method) {
    case PruneMethod::kMagnitudeSp:
      return values.square().sum({0}).sqrt();
    case PruneMethod::kWandaSp:
      return values.abs().sum({0}).mul(statistics.column_norm().to(weight.device()));
    case PruneMethod::kFlap:
      return values.square().sum({0}).mul(statistics.variance().to(weight.device()));
    default:
      throw std::invalid_argument("unit scores: this method removes single weights");
  }
}

/// [rows, columns] bool: in every row the `num_removed` smallest are false, of equal ones the
/// first.
at::Tensor keep_largest(const at::Tensor& scores, int64_t num_removed) {
  const at::Tensor order = std::get<1>(scores.sort(/*stable=*/true, /*dim=*/1, false));
  at::Tensor kept = at::ones(scores.sizes(), at::TensorOptions(at::kBool));
  kept.scatter_(1, order.narrow(1, 0, num_removed), false);
  return kept;
}

int64_t removed_of(int64_t count, double sparsity) {
  return std::min<int64_t>(std::llround(sparsity * static_cast<double>(count)), count - 1);
}

}  // namespace

at::Tensor unit_scores(PruneMethod method, const UnitLayout& units, const at::Tensor& weight,
                       const InputStatistics& statistics, uint64_t seed) {
  if (method == PruneMethod::kRandomSp) {
    return at::rand({units.count}, at::detail::createCPUGenerator(seed), at::kFloat);
  }
  return column_scores(method, weight, statistics)
      .view({units.count, units.size})
      .sum({1})
      .to(at::kCPU, at::kFloat);
}

ScoredUnits score_units(const SpanJob& span, int half, const UnitLayout& units,
                        const PruneOptions& options,
                        const std::map<std::string, at::Tensor>& given) {
  const auto name = [&](const std::string& of) {
    return in_block(span.architecture, half / 2, of);
  };
  const std::string consumer = name(units.consumer->name);
  ScoredUnits scored{{}, options.method, {}};
  if (options.method == PruneMethod::kSnip) {
    const auto found = given.find(consumer);
    if (found == given.end()) {
      throw std::logic_error("unit scores: none were given for " + consumer);
    }
    scored.scores = found->second;
    if (units.consumer->expert < 0 || scored.scores.any().item<bool>()) return scored;
    scored.method = PruneMethod::kMagnitudeSp;
    scored.fallback = kNoTokenRouted;
  }
  static const InputStatistics kNothing;
  const InputStatistics* statistics = &kNothing;
  if (options.method == PruneMethod::kWandaSp || options.method == PruneMethod::kFlap) {
    statistics = &span.statistics.at(name(units.consumer->input));
    if (statistics->tokens == 0) {
      scored.method = PruneMethod::kMagnitudeSp;
      scored.fallback = kNoTokenRouted;
    }
  }
  scored.scores =
      unit_scores(scored.method, units, span.dense_at(half).linears.at(units.consumer->role).weight,
                  *statistics, seed_of(options.seed, consumer));
  return scored;
}

int64_t units_per_step(const UnitLayout& units, HeadUnits how) {
  if (units.per_shared == 1 || how == HeadUnits::kQuery) return 1;
  return how == HeadUnits::kBalanced ? units.count / units.per_shared : units.per_shared;
}

std::vector<double> step_scores(const at::Tensor& scores, const UnitLayout& units, HeadUnits how) {
  require_finite("scores of the units of " + units.consumer->name, scores);
  const int64_t per_step = units_per_step(units, how);
  at::Tensor steps = scores.to(at::kDouble);
  if (how == HeadUnits::kBalanced && per_step > 1) {  // one of every key-value head
    steps = std::get<0>(steps.view({-1, units.per_shared}).sort(1)).sum({0});
  } else {
    steps = std::get<0>(steps.view({-1, per_step}).sum({1}).sort(0));
  }
  steps = steps.contiguous();
  const double* values = steps.const_data_ptr<double>();
  return {values, values + steps.size(0)};
}

int64_t num_kept_units(double sparsity, const UnitLayout& units, HeadUnits how) {
  const int64_t shared = units.count / units.per_shared;
  if (units.per_shared == 1 || how == HeadUnits::kQuery) {
    return units.count - removed_of(units.count, sparsity);
  }
  return how == HeadUnits::kBalanced
             ? shared * (units.per_shared - removed_of(units.per_shared, sparsity))
             : (shared - removed_of(shared, sparsity)) * units.per_shared;
}

at::Tensor kept_units(const at::Tensor& scores, double sparsity, const UnitLayout& units,
                      HeadUnits how) {
  require_finite("scores of the units of " + units.consumer->name, scores);
  const int64_t shared = units.count / units.per_shared;
  if (units.per_shared == 1 || how == HeadUnits::kQuery) {
    return keep_largest(scores.view({1, -1}), removed_of(units.count, sparsity)).view(-1);
  }
  const at::Tensor grouped = scores.view({shared, units.per_shared});
  if (how == HeadUnits::kBalanced) {
    return keep_largest(grouped, removed_of(units.per_shared, sparsity)).view(-1);
  }
  return keep_largest(grouped.sum({1}).view({1, -1}), removed_of(shared, sparsity))
      .view(-1)
      .repeat_interleave(units.per_shared);
}

at::Tensor kept_rows(const at::Tensor& kept, const UnitLayout& units) {
  return kept.repeat_interleave(units.size);
}

at::Tensor kept_shared_rows(const at::Tensor& kept, const UnitLayout& units) {
  return kept.view({-1, units.per_shared}).any(1).repeat_interleave(units.size);
}

}  // namespace coppice
