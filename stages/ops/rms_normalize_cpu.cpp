#include <ATen/Parallel.h>

#include <cmath>

#include "stages/ops/cpu_loops.h"
#include "stages/ops/rms_normalize_detail.h"

namespace coppice::detail {
namespace {

using cpu::Bf16;
using cpu::load;
using cpu::store;

constexpr int kLanes = 16;  // independent partial sums: what the compiler needs to vectorise a sum

template <typename T>
COPPICE_INLINE void normalize(const T* x, T* x_hat, float* inverse_rms, int64_t rows, int64_t width,
                              float epsilon) {
  for (int64_t row = 0; row < rows; ++row, x += width, x_hat += width) {
    float partial[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
      for (int lane = 0; lane < kLanes; ++lane)
        partial[lane] += load(x[i + lane]) * load(x[i + lane]);
    }
    float sum = 0;
    for (; i < width; ++i) sum += load(x[i]) * load(x[i]);
    for (int lane = 0; lane < kLanes; ++lane) sum += partial[lane];
    const float scale = 1.0f / std::sqrt(sum / static_cast<float>(width) + epsilon);
    inverse_rms[row] = scale;
    for (i = 0; i < width; ++i) store(x_hat[i], load(x[i]) * scale);
  }
}

COPPICE_CLONES void rms_normalize_loop(const float* __restrict x, float* __restrict x_hat,
                                       float* __restrict inverse_rms, int64_t rows, int64_t width,
                                       float epsilon) {
  normalize(x, x_hat, inverse_rms, rows, width, epsilon);
}
COPPICE_CLONES void rms_normalize_loop(const Bf16* __restrict x, Bf16* __restrict x_hat,
                                       float* __restrict inverse_rms, int64_t rows, int64_t width,
                                       float epsilon) {
  normalize(x, x_hat, inverse_rms, rows, width, epsilon);
}

template <typename T>
void run(const at::Tensor& x, double epsilon, at::Tensor& x_hat, at::Tensor& inverse_rms) {
  const int64_t width = x.size(1);
  const T* x_data = static_cast<const T*>(x.const_data_ptr());
  T* x_hat_data = static_cast<T*>(x_hat.data_ptr());
  float* inverse_data = inverse_rms.data_ptr<float>();
  at::parallel_for(0, x.size(0), /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    rms_normalize_loop(x_data + begin * width, x_hat_data + begin * width, inverse_data + begin,
                       end - begin, width, static_cast<float>(epsilon));
  });
}

}  // namespace

void rms_normalize_rows_cpu(const at::Tensor& x, double epsilon, at::Tensor& x_hat,
                            at::Tensor& inverse_rms) {
  if (x.scalar_type() == at::kFloat) return run<float>(x, epsilon, x_hat, inverse_rms);
  run<Bf16>(x, epsilon, x_hat, inverse_rms);
}

}  // namespace coppice::detail
