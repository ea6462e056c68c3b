#include <ATen/Parallel.h>

#include "stages/ops/column_squares_detail.h"
#include "stages/ops/cpu_loops.h"

namespace coppice::detail {
namespace {

using cpu::Bf16;
using cpu::load;

template <typename T>
COPPICE_INLINE void add(double* sums, const T* x, int64_t tokens, int64_t stride, int64_t columns) {
  for (int64_t token = 0; token < tokens; ++token, x += stride) {
    for (int64_t j = 0; j < columns; ++j) sums[j] += static_cast<double>(load(x[j]) * load(x[j]));
  }
}

COPPICE_CLONES void column_squares_loop(double* __restrict sums, const float* __restrict x,
                                        int64_t tokens, int64_t stride, int64_t columns) {
  add(sums, x, tokens, stride, columns);
}
COPPICE_CLONES void column_squares_loop(double* __restrict sums, const Bf16* __restrict x,
                                        int64_t tokens, int64_t stride, int64_t columns) {
  add(sums, x, tokens, stride, columns);
}

template <typename T>
void run(at::Tensor& sums, const at::Tensor& x) {
  double* sums_data = sums.data_ptr<double>();
  const T* x_data = static_cast<const T*>(x.const_data_ptr());
  const int64_t tokens = x.size(0), width = x.size(1);
  // Threads take columns, not tokens, so that every sum runs over the tokens in order.
  at::parallel_for(0, width, /*grain_size=*/64, [&](int64_t begin, int64_t end) {
    column_squares_loop(sums_data + begin, x_data + begin, tokens, width, end - begin);
  });
}

}  // namespace

void add_column_squares_cpu(at::Tensor& sums, const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) return run<float>(sums, x);
  run<Bf16>(sums, x);
}

}  // namespace coppice::detail
