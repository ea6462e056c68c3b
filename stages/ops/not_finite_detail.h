// What the CPU implements of not_finite.h.
#pragma once

#include <ATen/core/Tensor.h>

#include <bit>
#include <cstdint>

namespace coppice::detail {

/// Of n numbers.
inline int64_t count_not_finite(const float* x, int64_t n) {
  constexpr uint32_t kExponent = 0x7f800000u;  // all ones: infinity or NaN
  int64_t count = 0;
  for (int64_t i = 0; i < n; ++i) count += (std::bit_cast<uint32_t>(x[i]) & kExponent) == kExponent;
  return count;
}

/// x  contiguous fp32, bf16 or fp16 on the CPU
int64_t count_not_finite_cpu(const at::Tensor& x);

}  // namespace coppice::detail
