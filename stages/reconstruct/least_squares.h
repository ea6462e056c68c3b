// The kept weights that least squares would choose, row by row, without any training.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// Minimises ‖X (w − v)‖² + λ ‖w_S − v_S‖² for every row v of `dense` over w that is 0 outside of
/// the row's kept support S; λ = ridge · mean(diagonal of gram). Conjugate gradients on the normal
/// equations, preconditioned by the diagonal, all rows at once: a fixed number of iterations, each
/// of which lowers the sum.
///
///     dense    [out, in]  any float type
///     mask     [out, in]  bool, true is kept
///     gram     [in, in]   fp32, XᵀX, full
///     returns  [out, in]  fp32, 0 outside of the support
///
/// All on one device. Rows do not depend on each other.
/// Source: arXiv:2407.13331 (LIAR), the ridge on the increment; Hestenes & Stiefel 1952.
at::Tensor least_squares(const at::Tensor& dense, const at::Tensor& mask, const at::Tensor& gram,
                         double ridge);

/// The same as it will be written: in the dtype of `dense`, every pruned weight +0.
at::Tensor least_squares_as_written(const at::Tensor& dense, const at::Tensor& mask,
                                    const at::Tensor& gram, double ridge);

/// FLOP, and bytes held beside arguments and result, for a weight of that shape.
double least_squares_flop(int64_t out, int64_t in);
double least_squares_bytes(int64_t out, int64_t in);

}  // namespace coppice
