// XᵀX of what linears read: what SparseGPT and least squares need to know of a linear's input.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// gram += xᵀ x, on and below the diagonal only: the rest is unspecified until mirror_gram().
/// Products and sums in fp32.
/// gram  [in, in] fp32, contiguous, changed in place      x  [tokens, in], any float type, same
/// device. Throws std::invalid_argument if the widths differ.
void add_gram(at::Tensor& gram, const at::Tensor& x);

/// Copies what is below the diagonal above it.
void mirror_gram(at::Tensor& gram);

/// FLOP of add_gram for `tokens` rows of `in` columns: little more than half of a full product.
double gram_flop(int64_t in, double tokens);

}  // namespace coppice
