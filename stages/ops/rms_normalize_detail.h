// The CPU side of rms_normalize_rows: contiguous fp32 or bf16 [tokens, hidden].
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::detail {

void rms_normalize_rows_cpu(const at::Tensor& x, double epsilon, at::Tensor& x_hat,
                            at::Tensor& inverse_rms);

}  // namespace coppice::detail
