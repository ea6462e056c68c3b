#include <ATen/Parallel.h>

#include "stages/ops/cpu_loops.h"
#include "stages/ops/rotate_halves_detail.h"

namespace coppice::detail {
namespace {

using cpu::Bf16;
using cpu::load;
using cpu::round_to;
using cpu::store;

/// All heads of one token.
template <typename T>
COPPICE_INLINE void rotate(const T* x, int64_t x_stride, T* rotated, int64_t rotated_stride,
                           const T* cos, const T* sin, float sign, int64_t heads, int64_t half) {
  for (int64_t head = 0; head < heads; ++head, x += x_stride, rotated += rotated_stride) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = load(x[i]);
      const float b = load(x[i + half]);
      const float c = load(cos[i]);
      const float s = sign * load(sin[i]);
      store(rotated[i], round_to<T>(a * c) - round_to<T>(b * s));
      store(rotated[i + half], round_to<T>(b * c) + round_to<T>(a * s));
    }
  }
}

COPPICE_CLONES void rotate_halves_loop(const float* __restrict x, int64_t x_stride,
                                       float* __restrict rotated, int64_t rotated_stride,
                                       const float* __restrict cos, const float* __restrict sin,
                                       float sign, int64_t heads, int64_t half) {
  rotate(x, x_stride, rotated, rotated_stride, cos, sin, sign, heads, half);
}
COPPICE_CLONES void rotate_halves_loop(const Bf16* __restrict x, int64_t x_stride,
                                       Bf16* __restrict rotated, int64_t rotated_stride,
                                       const Bf16* __restrict cos, const Bf16* __restrict sin,
                                       float sign, int64_t heads, int64_t half) {
  rotate(x, x_stride, rotated, rotated_stride, cos, sin, sign, heads, half);
}

template <typename T>
void run(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, float sign,
         at::Tensor& rotated) {
  const int64_t length = x.size(2), head_dim = x.size(3);
  const T* x_data = static_cast<const T*>(x.const_data_ptr());
  const T* cos_data = static_cast<const T*>(cos.const_data_ptr());
  const T* sin_data = static_cast<const T*>(sin.const_data_ptr());
  T* rotated_data = static_cast<T*>(rotated.data_ptr());
  at::parallel_for(0, x.size(0) * length, /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t sequence = token / length, position = token % length;
      rotate_halves_loop(x_data + sequence * x.stride(0) + position * x.stride(2), x.stride(1),
                         rotated_data + sequence * rotated.stride(0) + position * rotated.stride(2),
                         rotated.stride(1), cos_data + position * head_dim,
                         sin_data + position * head_dim, sign, x.size(1), head_dim / 2);
    }
  });
}

}  // namespace

void rotate_halves_cpu(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                       float sign, at::Tensor& rotated) {
  if (x.scalar_type() == at::kFloat) return run<float>(x, cos, sin, sign, rotated);
  run<Bf16>(x, cos, sin, sign, rotated);
}

}  // namespace coppice::detail
