#include "stages/units/unit_budget.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <iterator>
#include <numeric>
#include <queue>
#include <stdexcept>
#include <utility>

namespace coppice {
namespace {

constexpr double kOverflow = 1e200;  // in its place a number: among equals the next step costs more

double mean_of(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Takes the cheapest next step until the budget is met; `price(group, step)` never falls with the
/// step. A step that would pass the budget by more than half of itself closes its group.
std::vector<int64_t> take_cheapest(const std::vector<UnitGroup>& groups, double share,
                                   const std::function<double(size_t, int64_t)>& price) {
  using Offer = std::pair<double, size_t>;  // of equal prices the first group's
  std::priority_queue<Offer, std::vector<Offer>, std::greater<>> offers;
  double all = 0;
  for (size_t group = 0; group < groups.size(); ++group) {
    all += groups[group].parameters * static_cast<double>(groups[group].steps());
    if (groups[group].steps() > 1) offers.emplace(price(group, 0), group);
  }
  double left = share * all;
  std::vector<int64_t> taken(groups.size());
  while (!offers.empty()) {
    const size_t group = offers.top().second;
    offers.pop();
    const double parameters = groups[group].parameters;
    if (left < parameters / 2) continue;
    left -= parameters;
    const int64_t next = ++taken[group];
    if (next < groups[group].steps() - 1) offers.emplace(price(group, next), group);
  }
  return taken;
}

void standardise_scores(std::vector<double>& scores) {
  const double mean = mean_of(scores);
  double variance = 0;
  for (const double score : scores) variance += (score - mean) * (score - mean);
  const double deviation = std::sqrt(variance / static_cast<double>(scores.size()));
  for (double& score : scores) score = deviation > 0 ? (score - mean) / deviation : 0;
}

}  // namespace

std::vector<int64_t> steps_by_loss(const std::vector<UnitGroup>& groups,
                                   const std::vector<double>& losses, double share) {
  if (groups.empty()) return {};
  std::vector<double> increases = losses;  // what helped by chance costs nothing
  for (double& loss : increases) loss = std::max(loss, 0.0);
  std::vector<double> known;
  std::copy_if(increases.begin(), increases.end(), std::back_inserter(known),
               [](double loss) { return std::isfinite(loss); });
  const double mean = known.empty() ? 0 : mean_of(known);
  for (double& loss : increases) loss = std::min(loss, kOverflow);
  const double least = mean > 0 ? kLeastLoss * mean : 1;
  return take_cheapest(groups, share, [&](size_t group, int64_t step) {
    const auto steps = static_cast<double>(groups[group].steps());
    const double grows = static_cast<double>(2 * step + 1) / (steps * steps);  // (s+1)² − s²
    return std::max(increases[group], least) * grows / groups[group].parameters;
  });
}

std::vector<int64_t> steps_by_score(const std::vector<UnitGroup>& groups,
                                    std::vector<std::vector<double>> scores, double share,
                                    Standardise standardise) {
  for (size_t group = 0; group < groups.size(); ++group) {
    if (static_cast<int64_t>(scores.at(group).size()) != groups[group].steps()) {
      throw std::invalid_argument("steps by score: a score is wanted for every step");
    }
    if (standardise == Standardise::kYes) standardise_scores(scores[group]);
  }
  return take_cheapest(groups, share, [&](size_t group, int64_t step) {
    return scores[group][static_cast<size_t>(step)];
  });
}

}  // namespace coppice
