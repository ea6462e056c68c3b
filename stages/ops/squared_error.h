// The squared error of an output against its target, and its gradient written where the output was.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

/// Σ (output − target)², differences in fp32, summed per row in fp32 and over rows in fp64: a
/// scalar fp64 tensor on their device; the same for any number of threads. output, target  [tokens,
/// hidden], one float dtype
at::Tensor squared_error(const at::Tensor& output, const at::Tensor& target);

/// The same, and overwrites `output` with scale · (output − target), the gradient of
/// ½ · scale · squared_error with respect to it. Outside of autograd: no version is counted.
at::Tensor squared_error_gradient_(at::Tensor& output, const at::Tensor& target, double scale);

}  // namespace coppice
