#include "stages/model/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/where.h>

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

}  // namespace

RotaryTable make_rotary_table(const Rope& rope, int64_t head_dim, int64_t positions,
                              at::ScalarType dtype, at::Device device) {
  // On the CPU for every device, so that all see the same tables.
  const at::Tensor exponents = at::arange(0, head_dim, 2, at::kFloat) / head_dim;
  at::Tensor frequencies = at::pow(rope.theta, exponents).reciprocal();  // [head_dim / 2]
  if (rope.kind == RopeKind::kLlama3) frequencies = rescale_llama3(frequencies, rope);
  const at::Tensor angles = at::outer(at::arange(positions, at::kFloat), frequencies);
  const at::Tensor both_halves = at::cat({angles, angles}, 1);  // [positions, head_dim]
  return {both_halves.cos().to(device, dtype), both_halves.sin().to(device, dtype)};
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
