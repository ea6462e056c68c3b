#include "stages/ops/column_sweep.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>

#include "stages/ops/column_sweep_detail.h"

namespace coppice {

void sweep_columns_(at::Tensor& weight, at::Tensor& errors, const at::Tensor& keep,
                    const at::Tensor& factor, int64_t first, int64_t last) {
  if (weight.is_cpu()) {
    return detail::sweep_columns_cpu(weight, errors, keep.contiguous(), factor.contiguous(), first,
                                     last);
  }
  const at::NoGradGuard no_graph;
  for (int64_t j = first; j < last; ++j) {
    const int64_t behind = weight.size(1) - j - 1;
    const at::Tensor row = factor.select(0, j), pruned = keep.select(1, j).logical_not();
    at::Tensor column = weight.select(1, j), error = errors.select(1, j);
    error.copy_(column.mul(pruned).div_(row.select(0, j)));
    column.masked_fill_(pruned, 0);
    weight.narrow(1, j + 1, behind).addr_(error, row.narrow(0, j + 1, behind), 1, -1);
  }
}

}  // namespace coppice
