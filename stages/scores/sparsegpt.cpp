#include "stages/scores/sparsegpt.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>

#include <algorithm>

#include "stages/ops/column_sweep.h"
#include "stages/ops/mask_select.h"

namespace coppice {
namespace {

/// The lazy block at work: columns [first, first + width) of the weight, as a copy.
struct LazyBlock {
  at::Tensor weight;  // [out, width] fp32: columns to the right of the sweep are corrected
  at::Tensor errors;  // [out, width] fp32: (w_j − q_j) / U_jj
  at::Tensor mask;    // bool [out, width]
  at::Tensor factor;  // [width, width], of U
};

void sweep(LazyBlock& block, double sparsity, const SparsityPattern& pattern) {
  if (!pattern.is_unstructured()) {
    block.mask = sweep_groups_(block.weight, block.errors, block.factor, pattern.num_kept,
                               pattern.group_size);
    return;
  }
  const at::Tensor scores = block.weight.div(block.factor.diagonal()).square_();
  block.mask = keep_mask_by_matrix(scores, sparsity);
  sweep_columns_(block.weight, block.errors, block.mask, block.factor);
}

/// Dead columns get 1 there, before the mean is taken.
void damp_diagonal(at::Tensor& gram, double damping) {
  at::Tensor diagonal = gram.diagonal();
  diagonal.masked_fill_(diagonal.eq(0), 1);
  diagonal.add_(diagonal.mean(), damping);
}

}  // namespace

std::optional<at::Tensor> inverse_factor(const at::Tensor& gram, double damping) {
  const int64_t in = gram.size(0);
  // H = R Rᵀ with R upper triangular is Cholesky's H = L Lᵀ read from the other end, and U = R⁻¹:
  // one factorisation and one triangular inverse, where inverting H first would take two of each.
  at::Tensor reversed = gram.flip({0, 1});
  damp_diagonal(reversed, damping);
  auto [lower, failed] = at::linalg_cholesky_ex(reversed);
  reversed.reset();
  if (failed.item<int>() != 0) return std::nullopt;
  const at::Tensor upper = lower.flip({0, 1});
  lower.reset();
  at::Tensor factor = at::linalg_solve_triangular(upper, at::eye(in, gram.options()),
                                                  /*upper=*/true);
  if (!factor.diagonal().isfinite().all().item<bool>()) return std::nullopt;
  return factor.contiguous();
}

SweptWeight sweep_columns(const at::Tensor& weight, const at::Tensor& dead,
                          const at::Tensor& factor, double sparsity, const SparsityPattern& pattern,
                          int64_t block_size) {
  const int64_t in = weight.size(1);
  if (!pattern.is_unstructured()) block_size -= block_size % pattern.group_size;
  SweptWeight result;
  result.weight = weight
                      .to(weight.options().dtype(at::kFloat), /*non_blocking=*/false,
                          /*copy=*/true)
                      .masked_fill_(dead, 0);
  result.mask = at::empty(weight.sizes(), weight.options().dtype(at::kBool));
  for (int64_t first = 0; first < in; first += block_size) {
    const int64_t width = std::min(block_size, in - first), rest = in - first - width;
    LazyBlock block;
    block.weight = result.weight.narrow(1, first, width).contiguous();
    block.errors = at::empty(block.weight.sizes(), block.weight.options());
    block.factor = factor.narrow(0, first, width).narrow(1, first, width).contiguous();
    sweep(block, sparsity, pattern);
    result.weight.narrow(1, first, width).copy_(block.weight);
    result.mask.narrow(1, first, width).copy_(block.mask);
    result.weight.narrow(1, first + width, rest)
        .addmm_(block.errors, factor.narrow(0, first, width).narrow(1, first + width, rest), 1, -1);
  }
  return result;
}

double inverse_factor_flop(int64_t in) {
  const auto n = static_cast<double>(in);
  return n * n * n / 3 + n * n * n;  // Cholesky; the triangle solved against the identity
}

double sweep_flop(int64_t out, int64_t in) {
  // Every column corrects all behind it.
  return static_cast<double>(out) * static_cast<double>(in) * static_cast<double>(in);
}

}  // namespace coppice
