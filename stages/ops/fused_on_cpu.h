// Whether an op's own CPU loop applies, or its ATen formula (other devices, dtypes and layouts).
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

namespace coppice {

/// All on the CPU, contiguous, and of one dtype that the loops know: fp32 or bf16.
inline bool fused_on_cpu(std::initializer_list<at::Tensor> tensors) {
  const at::ScalarType dtype = tensors.begin()->scalar_type();
  if (dtype != at::kFloat && dtype != at::kBFloat16) return false;
  for (const at::Tensor& tensor : tensors) {
    if (!tensor.is_cpu() || !tensor.is_contiguous() || tensor.scalar_type() != dtype) return false;
  }
  return true;
}

}  // namespace coppice
