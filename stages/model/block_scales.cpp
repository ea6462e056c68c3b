#include "stages/model/block_scales.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <stdexcept>

namespace coppice {

at::Tensor widened_fp8(const at::Tensor& values, const at::Tensor& scales,
                       const ScaleBlock& block) {
  const at::NoGradGuard no_graph;
  if (scales.sizes().vec() != scales_shape(block, values.sizes().vec())) {
    throw std::invalid_argument("FP8 weight: its scales do not cover it block by block");
  }
  const int64_t out = values.size(0), in = values.size(1);
  at::Tensor wide = at::empty({out, in}, scales.options().dtype(at::kBFloat16));
  for (int64_t first = 0; first < out; first += block.rows) {  // a copy in fp32 of few rows at once
    const int64_t rows = std::min(block.rows, out - first);
    const at::Tensor of_columns =
        scales[first / block.rows].repeat_interleave(block.columns).narrow(0, 0, in);
    wide.narrow(0, first, rows)
        .copy_(values.narrow(0, first, rows).to(at::kFloat).mul_(of_columns));
  }
  return wide;
}

}  // namespace coppice
