// One budget for the units of many layers: which layers give how many.
#pragma once

#include <cstdint>
#include <vector>

namespace coppice {

/// Units that are counted together: those of one consumer, or of all experts of a half.
struct UnitGroup {
  int64_t units = 0;
  int64_t per_step = 1;   // so many go at a time
  double parameters = 0;  // that go with one step
  int64_t steps() const { return units / per_step; }
};

/// Steps to take of each group so that Σ_g losses_g · (share of g that goes)² is small, and the
/// parameters that go are `share` of all to the nearest step; a group keeps its last step. A loss
/// is what going entirely would cost if it grew with the square of the share; those below
/// kLeastLoss of the mean count as that: a trial cannot tell them from nothing, and what the model
/// does without at a half it may miss at the end. An infinite one goes after all others. Cheapest
/// steps first, which is optimal where steps have one size. Pure function.
inline constexpr double kLeastLoss = 0.3;
std::vector<int64_t> steps_by_loss(const std::vector<UnitGroup>& groups,
                                   const std::vector<double>& losses, double share);

enum class Standardise { kNo, kYes };

/// Steps to take of each group so that the smallest scores of all groups go, until `share` of all
/// parameters does. scores: by group, of its steps in the order in which they go, ascending; each
/// group's are made comparable first by taking their mean away and dividing by their deviation, if
/// `standardise`. Throws std::invalid_argument unless a score a step is given. Pure function.
/// Source: An et al., "Fluctuation-based Adaptive Structured Pruning for Large Language Models",
/// arXiv:2312.11983, section 3.3.
std::vector<int64_t> steps_by_score(const std::vector<UnitGroup>& groups,
                                    std::vector<std::vector<double>> scores, double share,
                                    Standardise standardise);

}  // namespace coppice
