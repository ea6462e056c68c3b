// The CPU side of rotate_halves: fp32 or bf16, head_dim contiguous.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice::detail {

/// `sign` is +1 or −1: the direction of the turn.
void rotate_halves_cpu(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                       float sign, at::Tensor& rotated);

}  // namespace coppice::detail
