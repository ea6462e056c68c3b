// How much a unit is missed, and which units stay.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "stages/prune_options.h"
#include "stages/span_job.h"
#include "stages/units/unit_layout.h"

namespace coppice {

/// Scores units by the columns that read them; those with the smallest scores are removed first.
///     magnitude_sp  Σ_j ‖W_:j‖₂
///     wanda_sp      Σ_j ‖W_:j‖₁ · ‖X_j‖₂
///     flap          Σ_j ‖W_:j‖₂² · Var(X_j)
///     random_sp     drawn by `seed`
/// over the columns j of a unit. Units are ranked within their layer, FLAP's too, whose authors
/// standardise scores and rank them over the whole model.
///
///     weight      [out, in]  of the consumer, any float type
///     statistics             of its input; read by wanda_sp (squares) and flap (sums as well)
///     returns     [units]    fp32, on the CPU
///
/// Throws std::invalid_argument for a method that removes no units.
/// Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models",
/// arXiv:2312.11983 (eq. 5; Wanda-sp is its baseline).
at::Tensor unit_scores(PruneMethod method, const UnitLayout& units, const at::Tensor& weight,
                       const InputStatistics& statistics, uint64_t seed);

/// The scores of the units that one consumer reads in half-block `half` of the span, and how they
/// came about: what options.method says, or, of an expert that no token was routed to, magnitudes.
struct ScoredUnits {
  at::Tensor scores;  // [units] fp32, on the CPU
  PruneMethod method = PruneMethod::kMagnitudeSp;
  std::string fallback;  // empty, or why the method is another
};

/// `given`: Variant::unit_scores. Wants SpanJob::statistics, but for random_sp, magnitude_sp and
/// snip. On the device's thread.
ScoredUnits score_units(const SpanJob& span, int half, const UnitLayout& units,
                        const PruneOptions& options,
                        const std::map<std::string, at::Tensor>& given);

/// How many units go at once, and so many times that; see kept_units().
int64_t units_per_step(const UnitLayout& units, HeadUnits how);

/// What each further step costs, in the order in which kept_units() takes them: sums of the scores
/// of the units that go with it, ascending, [units / units_per_step()].
std::vector<double> step_scores(const at::Tensor& scores, const UnitLayout& units, HeadUnits how);

/// How many stay when such a share goes: see kept_units().
int64_t num_kept_units(double sparsity, const UnitLayout& units, HeadUnits how);

/// [units] bool: true stays. round(sparsity · units) go, never all; of equal scores the first.
/// Heads go one by one, or as many of every key-value head, or with it: `how`, where they share
/// one. Then as many go of each, or so many key-value heads, to the nearest number.
/// Throws NumericalError unless all scores are finite.
at::Tensor kept_units(const at::Tensor& scores, double sparsity, const UnitLayout& units,
                      HeadUnits how);

/// The rows of a producer (and columns of the consumer) of kept units, [count · size] bool; the
/// rows of a shared linear that a kept unit reads.
at::Tensor kept_rows(const at::Tensor& kept, const UnitLayout& units);
at::Tensor kept_shared_rows(const at::Tensor& kept, const UnitLayout& units);

}  // namespace coppice
