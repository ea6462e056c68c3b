// How far numbers may be apart, named once per dtype.
#pragma once

#include <ATen/core/Tensor.h>
#include <gmock/gmock.h>

#include <cstring>

namespace coppice::testing {

/// Of the largest magnitude in the expected tensor. fp32: the order of sums differs between
/// libraries. bf16 and fp16: two spacings (2⁻⁷ and 2⁻¹⁰ each at the top of a binade), for roundings
/// that fell to the other side.
inline double tolerance(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return 1e-10;
    case at::kBFloat16:
      return 2.0 / 128;
    case at::kHalf:
      return 2.0 / 1024;
    default:
      return 1e-4;
  }
}

/// Shapes are equal, and no element is further off than tolerance(dtype of `expected`).
MATCHER_P(IsCloseTo, expected, "is close to the expected tensor") {
  const at::Tensor& wanted = expected;
  if (arg.sizes() != wanted.sizes()) {
    *result_listener << "shape [" << arg.sizes() << "], expected [" << wanted.sizes() << "]";
    return false;
  }
  const at::Tensor difference = arg.to(at::kDouble).sub(wanted.to(at::kDouble)).abs();
  const double worst = difference.max().template item<double>();
  const double scale = wanted.to(at::kDouble).abs().max().template item<double>();
  *result_listener << "furthest off by " << worst << ", the largest expected is " << scale;
  return worst <= tolerance(wanted.scalar_type()) * scale;  // false for NaN
}

/// Same dtype, shape and bits.
MATCHER_P(IsIdenticalTo, expected, "has the expected tensor's bytes") {
  const at::Tensor a = arg.contiguous(), b = expected.contiguous();
  return a.scalar_type() == b.scalar_type() && a.sizes() == b.sizes() &&
         std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

}  // namespace coppice::testing
