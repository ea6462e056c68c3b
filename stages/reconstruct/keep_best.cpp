#include "stages/reconstruct/keep_best.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "stages/reconstruct.h"  // num_held_out

namespace coppice {
namespace {

std::vector<int> index_range(int first, int count) {
  std::vector<int> indices(static_cast<size_t>(count));
  std::iota(indices.begin(), indices.end(), first);
  return indices;
}

}  // namespace

HoldOut hold_out(const ReconstructOptions& options, int num_windows, const std::string& name) {
  if (num_windows < 2) {
    throw std::invalid_argument(
        fmt::format("{}: reconstruction needs at least 2 calibration windows, one to train on and "
                    "one held out, found {}: raise nsamples",
                    name, num_windows));
  }
  const int num_held = num_held_out(options.validation_fraction, num_windows);
  const int num_training = num_windows - num_held;
  return {num_training, index_range(num_training, num_held),
          index_range(0, std::min(num_held, num_training))};
}

bool is_better(double became, double was) {
  return became < was || (std::isnan(was) && !std::isnan(became));
}

std::string not_better(const std::string& solver, double became, double was) {
  return fmt::format("{}: the held-out loss became {:g}, it was {:g}", solver, became, was);
}

std::string diverged(double lr) {
  return fmt::format("the loss was not finite at rate {:g}, nor at twice and four times it", lr);
}

std::vector<double> ridges_of(const ReconstructOptions& options) {
  switch (options.solver) {
    case Solver::kAdamW:
      return {};
    case Solver::kBias:
      return {INFINITY};
    case Solver::kLeastSquares:
    case Solver::kLeastSquaresAdamW:
      if (options.ridge == 0) return {1e-3, 1e-2, 1e-1};
      break;
    case Solver::kLiar:
    case Solver::kLiarAdamW:
      if (options.ridge == 0) return {INFINITY, 1, 1e-1, 1e-2, 1e-3};
      break;
  }
  return {options.ridge};
}

std::string fit_name(const ReconstructOptions& options) {
  if (!folds_units(options)) return "least_squares";
  return options.solver == Solver::kBias ? "bias" : "liar";
}

Passes passes_of(const ReconstructOptions& options, int64_t num_windows, int64_t seqlen) {
  const auto windows = static_cast<int>(num_windows);
  const auto tokens = static_cast<double>(seqlen);
  const int held_out = num_held_out(options.validation_fraction, windows);
  const double epochs = trains_adamw(options) ? options.epochs : 0;
  const double fits = static_cast<double>(ridges_of(options).size());
  const int training = windows - held_out;
  // Before and after each epoch on the held-out windows; before and after on as many training ones.
  const double reported = std::min(held_out, training);
  Passes passes;
  passes.training = epochs * training * tokens;
  passes.evaluated = ((1.0 + fits + epochs) * held_out + 2 * reported) * tokens;
  passes.evaluations = 3.0 + fits + epochs;
  passes.trained_at_once = std::min(options.batch_size, training) * tokens;
  // What losses are reported on is no more than what is held out.
  passes.judged_at_once = std::min(options.batch_size, held_out) * tokens;
  passes.steps = std::ceil(static_cast<double>(training) / options.batch_size) * epochs;
  return passes;
}

}  // namespace coppice
