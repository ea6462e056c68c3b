#include <ATen/Parallel.h>

#include "stages/ops/cpu_loops.h"
#include "stages/ops/squared_error_detail.h"

namespace coppice::detail {
namespace {

using cpu::Bf16;
using cpu::load;
using cpu::store;

constexpr int kLanes = 16;  // independent partial sums: what the compiler needs to vectorise a sum

template <typename T>
COPPICE_INLINE float row_error(const T* output, const T* target, int64_t width) {
  float partial[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= width; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float difference = load(output[i + lane]) - load(target[i + lane]);
      partial[lane] += difference * difference;
    }
  }
  float sum = 0;
  for (; i < width; ++i) {
    const float difference = load(output[i]) - load(target[i]);
    sum += difference * difference;
  }
  for (int lane = 0; lane < kLanes; ++lane) sum += partial[lane];
  return sum;
}

/// `gradient` may be `output` itself: every element is read before it is written.
template <typename T>
COPPICE_INLINE void errors(const T* output, const T* target, T* gradient, float scale,
                           float* row_sums, int64_t rows, int64_t width) {
  for (int64_t row = 0; row < rows; ++row, output += width, target += width) {
    row_sums[row] = row_error(output, target, width);
    if (gradient == nullptr) continue;
    for (int64_t i = 0; i < width; ++i) {
      store(gradient[i], scale * (load(output[i]) - load(target[i])));
    }
    gradient += width;
  }
}

COPPICE_CLONES void squared_error_loop(const float* output, const float* target, float* gradient,
                                       float scale, float* row_sums, int64_t rows, int64_t width) {
  errors(output, target, gradient, scale, row_sums, rows, width);
}
COPPICE_CLONES void squared_error_loop(const Bf16* output, const Bf16* target, Bf16* gradient,
                                       float scale, float* row_sums, int64_t rows, int64_t width) {
  errors(output, target, gradient, scale, row_sums, rows, width);
}

template <typename T>
void run(const at::Tensor& output, const at::Tensor& target, float scale, at::Tensor& gradient,
         at::Tensor& row_sums) {
  const int64_t width = output.size(1);
  const T* output_data = static_cast<const T*>(output.const_data_ptr());
  const T* target_data = static_cast<const T*>(target.const_data_ptr());
  T* gradient_data = gradient.defined() ? static_cast<T*>(gradient.data_ptr()) : nullptr;
  float* sums_data = row_sums.data_ptr<float>();
  at::parallel_for(0, output.size(0), /*grain_size=*/16, [&](int64_t begin, int64_t end) {
    const int64_t skip = begin * width;
    squared_error_loop(output_data + skip, target_data + skip,
                       gradient_data == nullptr ? nullptr : gradient_data + skip, scale,
                       sums_data + begin, end - begin, width);
  });
}

}  // namespace

void squared_error_cpu(const at::Tensor& output, const at::Tensor& target, float scale,
                       at::Tensor& gradient, at::Tensor& row_sums) {
  if (output.scalar_type() == at::kFloat) {
    return run<float>(output, target, scale, gradient, row_sums);
  }
  run<Bf16>(output, target, scale, gradient, row_sums);
}

}  // namespace coppice::detail
