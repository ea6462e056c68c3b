// The inner loop of SparseGPT: prunes columns one after the other, and corrects those behind.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// For each column j of [first, last), in order: the error of what is pruned is w_j / U_jj, and
/// error · U_jk is taken from every column k > j; pruned weights become 0. Rows are independent.
///
/// weight, errors [out, columns] fp32, contiguous, changed in place (errors in [first, last) only);
/// keep [out, columns] bool, false is pruned; factor [columns, columns] fp32, upper triangular, of
/// any strides.
void sweep_columns_(at::Tensor& weight, at::Tensor& errors, const at::Tensor& keep,
                    const at::Tensor& factor, int64_t first, int64_t last);

}  // namespace coppice
