// NaN and infinities, counted.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

/// Adds how many elements of x are NaN or infinite to `count`, where it is undefined makes it: an
/// int64 scalar tensor on the device of x, for which nobody has to be waited.
/// x  fp32, bf16 or fp16, any shape
void add_not_finite(at::Tensor& count, const at::Tensor& x);

}  // namespace coppice
