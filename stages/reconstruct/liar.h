// What removed inputs did, folded into the kept ones: least squares in closed form, no training.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stages/model/block_weights.h"

namespace coppice {

/// Of the tensor that a linear reads, over the same tokens. All on the linear's device.
struct InputMoments {
  at::Tensor gram;     // [in, in] fp32, XᵀX, full; read where something is regressed
  at::Tensor sum;      // [in] fp64, over the tokens; read where the linear has a bias
  int64_t tokens = 0;  // > 0
};

/// The linear that reads kept inputs alone. weight [out, in] fp32, 0 in removed columns; bias [out]
/// fp32, undefined where the linear has none.
struct FoldedLinear {
  at::Tensor weight;
  at::Tensor bias;
};

/// Rewrites y = W x + b so that it reads kept inputs K only:
///
///     D = (G_KK + λ I)⁻¹ G_KM W_Mᵀ        λ = ridge · mean(diagonal of G_KK)
///     W'_K = W_K + Dᵀ        b' = b + W_M mean(x_M) − Dᵀ mean(x_K)
///
/// where G is XᵀX, of inputs less their mean if there is a bias. It minimises
/// ‖X W'ᵀ + b' − X Wᵀ − b‖² + λ ‖W'_K − W_K‖². An infinite ridge leaves D = 0: bias compensation,
/// or, without a bias, plain removal. Where G_KK + λ I has no Cholesky factor in fp32, the ridge
/// is too small for it: the kept weights are NaN, which no hold-out prefers.
///
///     linear  weight [out, in], bias [out] or undefined; any float type
///     kept    [in] bool; at least one true
///
/// Throws NumericalError if the Gram matrix is not finite.
/// Source: "Reconstruct the Pruned Model without Any Retraining", arXiv:2407.13331 (LIAR); the
/// infinite ridge: FLAP, arXiv:2312.11983, eq. 4.
FoldedLinear fold_removed(const Linear& linear, const at::Tensor& kept, const InputMoments& moments,
                          double ridge);

/// FLOP, and bytes held beside arguments and result, with `kept` of `in` inputs.
double fold_flop(int64_t out, int64_t in, int64_t kept);
double fold_bytes(int64_t out, int64_t in, int64_t kept);

}  // namespace coppice
