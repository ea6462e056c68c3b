#include <ATen/Parallel.h>

#include "stages/ops/column_sweep_detail.h"
#include "stages/ops/cpu_loops.h"

namespace coppice::detail {
namespace {

struct Sweep {
  float* weight;
  float* errors;
  const bool* keep;
  const float* factor;
  int64_t columns, first, last;
};

// Threads take rows: a row's corrections stay in its cache, and nobody waits between columns.
COPPICE_CLONES void sweep_rows(const Sweep& sweep, int64_t begin, int64_t end) {
  const int64_t columns = sweep.columns;
  for (int64_t row = begin; row < end; ++row) {
    float* __restrict weight = sweep.weight + row * columns;
    float* errors = sweep.errors + row * columns;
    const bool* keep = sweep.keep + row * columns;
    for (int64_t j = sweep.first; j < sweep.last; ++j) {
      if (keep[j]) {
        errors[j] = 0;
        continue;
      }
      const float* __restrict factor = sweep.factor + j * columns;
      const float error = weight[j] / factor[j];
      errors[j] = error;
      weight[j] = 0;
      for (int64_t k = j + 1; k < columns; ++k) weight[k] -= error * factor[k];
    }
  }
}

}  // namespace

void sweep_columns_cpu(at::Tensor& weight, at::Tensor& errors, const at::Tensor& keep,
                       const at::Tensor& factor, int64_t first, int64_t last) {
  const Sweep sweep{weight.mutable_data_ptr<float>(),
                    errors.mutable_data_ptr<float>(),
                    keep.const_data_ptr<bool>(),
                    factor.const_data_ptr<float>(),
                    weight.size(1),
                    first,
                    last};
  at::parallel_for(0, weight.size(0), /*grain_size=*/8,
                   [&](int64_t begin, int64_t end) { sweep_rows(sweep, begin, end); });
}

}  // namespace coppice::detail
