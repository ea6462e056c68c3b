// The CPU side of sweep_columns_: contiguous tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice::detail {

void sweep_columns_cpu(at::Tensor& weight, at::Tensor& errors, const at::Tensor& keep,
                       const at::Tensor& factor, int64_t first, int64_t last);

}  // namespace coppice::detail
