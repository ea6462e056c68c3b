#include "stages/reconstruct/liar.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "stages/finite.h"

namespace coppice {
namespace {

at::Tensor indices(const at::Tensor& chosen) { return chosen.nonzero().squeeze(1); }

/// Rows and columns of the Gram matrix, of inputs less their mean where that is given.
at::Tensor part_of(const InputMoments& moments, const at::Tensor& mean, const at::Tensor& rows,
                   const at::Tensor& columns) {
  at::Tensor part = moments.gram.index_select(0, rows).index_select(1, columns);
  if (!mean.defined()) return part;
  const at::Tensor less = mean.index_select(0, rows).mul(double(moments.tokens));
  return part.addr_(less.to(at::kFloat), mean.index_select(0, columns).to(at::kFloat),
                    /*beta=*/1, /*alpha=*/-1);
}

/// (gram + λ I)⁻¹ right, or NaN; `gram` is used up.
at::Tensor ridge_solution(at::Tensor gram, const at::Tensor& right, double ridge) {
  require_finite("Gram matrix of the kept inputs", gram);
  const double mean = gram.diagonal().mean().item<double>();
  gram.diagonal().add_(std::max(ridge * mean, double(std::numeric_limits<float>::min())));
  const auto [factor, failed] = at::linalg_cholesky_ex(gram);
  if (failed.item<int64_t>() != 0) return at::full_like(right, NAN);
  return at::cholesky_solve(right, factor);
}

}  // namespace

FoldedLinear fold_removed(const Linear& linear, const at::Tensor& kept, const InputMoments& moments,
                          double ridge) {
  const at::NoGradGuard no_graph;
  const at::Tensor weight = linear.weight.to(at::kFloat);
  const at::Tensor keep = indices(kept), remove = indices(kept.logical_not());
  const at::Tensor removed = weight.index_select(1, remove);  // [out, removed]
  const bool has_bias = linear.bias.defined();
  const at::Tensor mean =  // [in] fp64
      has_bias ? moments.sum.div(double(moments.tokens)) : at::Tensor();
  at::Tensor kept_weight = weight.index_select(1, keep);
  FoldedLinear folded;
  if (has_bias) {
    folded.bias =
        linear.bias.to(at::kFloat) + removed.mv(mean.index_select(0, remove).to(at::kFloat));
  }
  if (!std::isinf(ridge) && remove.numel() > 0) {
    const at::Tensor right = part_of(moments, mean, keep, remove).mm(removed.t());  // [kept, out]
    const at::Tensor change =
        ridge_solution(part_of(moments, mean, keep, keep), right, ridge);  // [kept, out]
    kept_weight.add_(change.t());
    if (has_bias) folded.bias.sub_(change.t().mv(mean.index_select(0, keep).to(at::kFloat)));
  }
  folded.weight = at::zeros(weight.sizes(), weight.options());
  folded.weight.index_copy_(1, keep, kept_weight);
  return folded;
}

double fold_flop(int64_t out, int64_t in, int64_t kept) {
  const auto o = static_cast<double>(out), k = static_cast<double>(kept),
             m = static_cast<double>(in - kept);
  return 2 * k * m * o + k * k * k / 3 + 2 * k * k * o;
}

double fold_bytes(int64_t out, int64_t in, int64_t kept) {
  const auto o = static_cast<double>(out), i = static_cast<double>(in),
             k = static_cast<double>(kept);
  // The weight in fp32 and its two parts; the Gram matrix's parts, rows of it on the way, and its
  // factor; right side and solution.
  return 4 * (2 * o * i + 2 * k * k + k * i + 2 * k * o);
}

}  // namespace coppice
