// One pass, and no memory: ATen has no reduction that tells.
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>

#include "stages/ops/not_finite_detail.h"

namespace coppice::detail {
namespace {

constexpr int64_t kGrain = 1 << 16;

int64_t count_not_finite(const uint16_t* x, int64_t n, uint16_t exponent) {
  constexpr int64_t kStretch = 1 << 15;  // counted in 16 bits, as wide as what is compared
  int64_t count = 0;
  for (int64_t first = 0; first < n; first += kStretch) {
    const int64_t size = std::min(kStretch, n - first);
    uint16_t part = 0;
    for (int64_t i = 0; i < size; ++i) part += (x[first + i] & exponent) == exponent;
    count += part;
  }
  return count;
}

}  // namespace

int64_t count_not_finite_cpu(const at::Tensor& x) {
  const void* data = x.const_data_ptr();
  const uint16_t exponent = x.scalar_type() == at::kHalf ? 0x7c00 : 0x7f80;
  std::atomic<int64_t> count = 0;
  at::parallel_for(0, x.numel(), kGrain, [&](int64_t begin, int64_t end) {
    count +=
        x.scalar_type() == at::kFloat
            ? count_not_finite(static_cast<const float*>(data) + begin, end - begin)
            : count_not_finite(static_cast<const uint16_t*>(data) + begin, end - begin, exponent);
  });
  return count;
}

}  // namespace coppice::detail
