// Sums of squares down the columns: what Wanda-like scores need to know of a linear's input.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

/// sums_j += Σ_t x_tj², squares in fp32 (fp64 for fp64), sums in fp64, tokens in order: the result
/// does not depend on the number of threads. sums  [in] fp64, contiguous, changed in place      x
/// [tokens, in], any float type, same device
void add_column_squares(at::Tensor& sums, const at::Tensor& x);

}  // namespace coppice
