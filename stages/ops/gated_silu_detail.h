// The CPU side of gated_silu: contiguous fp32 or bf16 tensors of one shape.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::detail {

void gated_silu_cpu(const at::Tensor& gate, const at::Tensor& up, at::Tensor& product);
void gated_silu_backward_cpu(const at::Tensor& gradient, const at::Tensor& gate,
                             const at::Tensor& up, at::Tensor& gate_gradient,
                             at::Tensor& up_gradient);

}  // namespace coppice::detail
