// The CPU side of add_column_squares: contiguous fp32 or bf16 [tokens, in].
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::detail {

void add_column_squares_cpu(at::Tensor& sums, const at::Tensor& x);

}  // namespace coppice::detail
