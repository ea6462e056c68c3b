#include <ATen/Parallel.h>

#include "stages/ops/cpu_loops.h"
#include "stages/ops/gated_silu_detail.h"

namespace coppice::detail {
namespace {

using cpu::Bf16;
using cpu::load;
using cpu::round_to;
using cpu::store;

constexpr int64_t kGrain = 16384;  // elements a thread should have at least

template <typename T>
COPPICE_INLINE void forward(const T* gate, const T* up, T* product, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = load(gate[i]);
    store(product[i], round_to<T>(g * cpu::sigmoid(g)) * load(up[i]));
  }
}

template <typename T>
COPPICE_INLINE void backward(const T* gradient, const T* gate, const T* up, T* gate_gradient,
                             T* up_gradient, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float d = load(gradient[i]);
    const float g = load(gate[i]);
    const float s = cpu::sigmoid(g);
    store(up_gradient[i], d * round_to<T>(g * s));
    store(gate_gradient[i], round_to<T>(d * load(up[i])) * s * (1.0f + g * (1.0f - s)));
  }
}

COPPICE_CLONES void gated_silu_loop(const float* __restrict gate, const float* __restrict up,
                                    float* __restrict product, int64_t n) {
  forward(gate, up, product, n);
}
COPPICE_CLONES void gated_silu_loop(const Bf16* __restrict gate, const Bf16* __restrict up,
                                    Bf16* __restrict product, int64_t n) {
  forward(gate, up, product, n);
}
COPPICE_CLONES void gated_silu_backward_loop(const float* __restrict gradient,
                                             const float* __restrict gate,
                                             const float* __restrict up,
                                             float* __restrict gate_gradient,
                                             float* __restrict up_gradient, int64_t n) {
  backward(gradient, gate, up, gate_gradient, up_gradient, n);
}
COPPICE_CLONES void gated_silu_backward_loop(const Bf16* __restrict gradient,
                                             const Bf16* __restrict gate, const Bf16* __restrict up,
                                             Bf16* __restrict gate_gradient,
                                             Bf16* __restrict up_gradient, int64_t n) {
  backward(gradient, gate, up, gate_gradient, up_gradient, n);
}

template <typename T>
void run_forward(const at::Tensor& gate, const at::Tensor& up, at::Tensor& product) {
  const T* gate_data = static_cast<const T*>(gate.const_data_ptr());
  const T* up_data = static_cast<const T*>(up.const_data_ptr());
  T* product_data = static_cast<T*>(product.data_ptr());
  at::parallel_for(0, gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
    gated_silu_loop(gate_data + begin, up_data + begin, product_data + begin, end - begin);
  });
}

template <typename T>
void run_backward(const at::Tensor& gradient, const at::Tensor& gate, const at::Tensor& up,
                  at::Tensor& gate_gradient, at::Tensor& up_gradient) {
  const T* gradient_data = static_cast<const T*>(gradient.const_data_ptr());
  const T* gate_data = static_cast<const T*>(gate.const_data_ptr());
  const T* up_data = static_cast<const T*>(up.const_data_ptr());
  T* gate_out = static_cast<T*>(gate_gradient.data_ptr());
  T* up_out = static_cast<T*>(up_gradient.data_ptr());
  at::parallel_for(0, gate.numel(), kGrain, [&](int64_t begin, int64_t end) {
    gated_silu_backward_loop(gradient_data + begin, gate_data + begin, up_data + begin,
                             gate_out + begin, up_out + begin, end - begin);
  });
}

}  // namespace

void gated_silu_cpu(const at::Tensor& gate, const at::Tensor& up, at::Tensor& product) {
  if (gate.scalar_type() == at::kFloat) return run_forward<float>(gate, up, product);
  run_forward<Bf16>(gate, up, product);
}

void gated_silu_backward_cpu(const at::Tensor& gradient, const at::Tensor& gate,
                             const at::Tensor& up, at::Tensor& gate_gradient,
                             at::Tensor& up_gradient) {
  if (gate.scalar_type() == at::kFloat) {
    return run_backward<float>(gradient, gate, up, gate_gradient, up_gradient);
  }
  run_backward<Bf16>(gradient, gate, up, gate_gradient, up_gradient);
}

}  // namespace coppice::detail
