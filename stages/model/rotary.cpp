#include "stages/model/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "stages/model/differentiable.h"

namespace coppice {
namespace {

/// Long wavelengths are stretched by `factor`, short ones kept, those between blended.
at::Tensor rescale_llama3(const at::Tensor& frequencies, const Rope& rope) {
  const double original = static_cast<double>(rope.original_max_position);
  const at::Tensor wavelengths = frequencies.reciprocal() * (2 * std::numbers::pi);
  const at::Tensor stretched = frequencies / rope.factor;
  const at::Tensor share = (wavelengths.reciprocal() * original - rope.low_freq_factor) /
                           (rope.high_freq_factor - rope.low_freq_factor);
  const at::Tensor blended = (1 - share) * stretched + share * frequencies;
  const at::Tensor is_long = wavelengths > original / rope.low_freq_factor;
  const at::Tensor is_short = wavelengths < original / rope.high_freq_factor;
  return at::where(is_long, stretched, at::where(is_short, frequencies, blended));
}

/// theta^(−2i/head_dim), i < head_dim / 2
at::Tensor frequencies_of(double theta, int64_t head_dim) {
  const at::Tensor exponents = at::arange(0, head_dim, 2, at::kFloat) / head_dim;
  return at::pow(theta, exponents).reciprocal();
}

/// Sequences longer than the original ones turn more slowly ("NTK-aware").
double dynamic_theta(const Rope& rope, int64_t head_dim, int64_t positions) {
  const double stretch = static_cast<double>(std::max(positions, rope.original_max_position)) /
                         static_cast<double>(rope.original_max_position);
  const double dim = static_cast<double>(head_dim);
  return rope.theta * std::pow(rope.factor * stretch - (rope.factor - 1), dim / (dim - 2));
}

/// The index, not whole, of the frequency that turns so many times within the original positions.
double index_of_turns(double turns, const Rope& rope, int64_t head_dim) {
  const double original = static_cast<double>(rope.original_max_position);
  return static_cast<double>(head_dim) * std::log(original / (turns * 2 * std::numbers::pi)) /
         (2 * std::log(rope.theta));
}

/// Frequencies of many turns are kept, those of few divided by the factor, those between blended.
at::Tensor rescale_yarn(const at::Tensor& frequencies, const Rope& rope, int64_t head_dim) {
  double low = index_of_turns(rope.beta_fast, rope, head_dim);
  double high = index_of_turns(rope.beta_slow, rope, head_dim);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(head_dim - 1));
  if (low == high) high += 0.001;  // a step, not a division by zero
  const at::Tensor index = at::arange(head_dim / 2, at::kFloat);
  const at::Tensor kept = 1 - ((index - low) / (high - low)).clamp(0, 1);
  const at::Tensor divided = (frequencies.reciprocal() * rope.factor).reciprocal();
  return divided * (1 - kept) + frequencies * kept;
}

at::Tensor scaled_frequencies(const Rope& rope, int64_t head_dim, int64_t positions) {
  switch (rope.kind) {
    case RopeKind::kNone:
      break;
    case RopeKind::kDefault:
      return frequencies_of(rope.theta, head_dim);
    case RopeKind::kLinear:
      return frequencies_of(rope.theta, head_dim) / rope.factor;
    case RopeKind::kDynamic:
      return frequencies_of(dynamic_theta(rope, head_dim, positions), head_dim);
    case RopeKind::kLlama3:
      return rescale_llama3(frequencies_of(rope.theta, head_dim), rope);
    case RopeKind::kYarn:
      return rescale_yarn(frequencies_of(rope.theta, head_dim), rope, head_dim);
  }
  throw std::logic_error("a rope without frequencies");
}

}  // namespace

RotaryTable make_rotary_table(const Rope& rope, int64_t head_dim, int64_t positions,
                              at::ScalarType dtype, at::Device device) {
  if (rope.kind == RopeKind::kNone) return {};
  // On the CPU for every device, so that all see the same tables.
  const at::Tensor frequencies = scaled_frequencies(rope, head_dim, positions);  // [head_dim / 2]
  const at::Tensor angles = at::outer(at::arange(positions, at::kFloat), frequencies);
  const at::Tensor both_halves = at::cat({angles, angles}, 1);  // [positions, head_dim]
  const auto table = [&](const at::Tensor& values) {
    return (rope.attention_factor == 1 ? values : values * rope.attention_factor).to(device, dtype);
  };
  return {table(both_halves.cos()), table(both_halves.sin())};
}

at::Tensor rotate(const at::Tensor& x, const RotaryTable& table) {
  const int64_t length = x.size(2);
  if (length > table.cos.size(0)) {
    throw std::invalid_argument("a sequence of " + std::to_string(length) +
                                " tokens is longer than the rotary table of " +
                                std::to_string(table.cos.size(0)) + " positions");
  }
  return differentiable::rotate_halves(
      x, {table.cos.narrow(0, 0, length), table.sin.narrow(0, 0, length)});
}

}  // namespace coppice
