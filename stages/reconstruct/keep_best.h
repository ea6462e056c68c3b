// What is held out of the calibration windows, and how it decides what is kept.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stages/reconstruct_options.h"

namespace coppice {

/// Windows by index: the first num_training are trained on, the rest judges.
struct HoldOut {
  int num_training = 0;
  std::vector<int> held_out;
  std::vector<int> first;  // training windows on which losses are reported, as many
};

/// Throws std::invalid_argument, with the `name` of what is reconstructed, if there are fewer than
/// two windows.
HoldOut hold_out(const ReconstructOptions& options, int num_windows, const std::string& name);

/// How often a window that diverged starts again, at half the rate.
constexpr int kMaxRetries = 2;

/// Less, or a number where the other is none.
bool is_better(double became, double was);

/// Why what was there before stays.
std::string not_better(const std::string& solver, double became, double was);
std::string diverged(double lr);

/// What is tried on the increment of a fit, as shares of the mean square of an input; infinite: the
/// mean of what was removed goes into the bias, and that is all. Empty where nothing is fitted.
std::vector<double> ridges_of(const ReconstructOptions& options);

/// WindowReport::kept of a fit: "least_squares", "bias", "liar".
std::string fit_name(const ReconstructOptions& options);

/// Tokens and passes that fitting, training and judging one window take.
struct Passes {
  double training = 0;     // tokens, over all epochs
  double evaluated = 0;    // tokens
  double evaluations = 0;  // times
  double steps = 0;        // of the optimiser
  // Tokens that lie in memory at once: a batch, or all windows there are where those are fewer.
  double trained_at_once = 0;
  double judged_at_once = 0;
};
Passes passes_of(const ReconstructOptions& options, int64_t num_windows, int64_t seqlen);

}  // namespace coppice
