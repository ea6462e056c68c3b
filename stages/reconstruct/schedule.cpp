#include "stages/reconstruct/schedule.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <utility>

#include "stages/reconstruct.h"
#include "stages/seed.h"

namespace coppice {

double learning_rate(const ReconstructOptions& options, int64_t step, int64_t num_steps) {
  const double steps = static_cast<double>(num_steps);
  const double warm = std::min(options.warmup, 1.0) * steps;
  const double rise = warm > 0 ? (static_cast<double>(step) + 1) / warm : 1;
  const double fall = warm < steps ? (steps - static_cast<double>(step)) / (steps - warm) : 1;
  return options.lr * std::min({1.0, rise, fall});
}

int num_held_out(double validation_fraction, int num_windows) {
  // 0.07 · 100 is 7.000000000000001 in binary: rounding must not cost a window.
  const double share = std::ceil(validation_fraction * num_windows - 1e-9);
  return std::max(1, std::min(static_cast<int>(share), num_windows - 1));
}

std::vector<int> epoch_order(const ReconstructOptions& options, const std::string& window_name,
                             int epoch, int num_training) {
  std::vector<int> order(static_cast<size_t>(num_training));
  std::iota(order.begin(), order.end(), 0);
  if (!options.shuffle) return order;
  // Fisher-Yates by hand: std::shuffle is free to draw differently in every standard library.
  std::mt19937_64 random(seed_of(options.seed, window_name, epoch));
  for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  return order;
}

}  // namespace coppice
