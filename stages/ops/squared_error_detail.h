// The CPU side of squared_error: contiguous fp32 or bf16 [tokens, hidden].
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::detail {

/// Errors per row into row_sums [tokens] fp32; differences times `scale` into `gradient` unless
/// undefined.
void squared_error_cpu(const at::Tensor& output, const at::Tensor& target, float scale,
                       at::Tensor& gradient, at::Tensor& row_sums);

}  // namespace coppice::detail
