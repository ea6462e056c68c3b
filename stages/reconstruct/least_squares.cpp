#include "stages/reconstruct/least_squares.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <limits>

namespace coppice {
namespace {

constexpr int kIterations = 24;
// Rows solved at once: enough for products at full rate, few enough to bound the memory.
constexpr int64_t kRows = 2048;

at::Tensor row_dot(const at::Tensor& a, const at::Tensor& b) {
  return a.mul(b).sum({1}, /*keepdim=*/true);  // [rows, 1]
}

/// a / b, and 0 where b is: that row is solved.
at::Tensor quotient(const at::Tensor& a, const at::Tensor& b) {
  return a.div(b).masked_fill_(b.le(0), 0);
}

/// What is added to the kept weights: (G_SS + λ I) δ = (G p)_S for the pruned part p of the rows.
at::Tensor increment(const at::Tensor& pruned_part, const at::Tensor& support,
                     const at::Tensor& gram, double lambda) {
  const at::Tensor preconditioner = gram.diagonal().add(lambda).reciprocal_();  // [in]
  at::Tensor residual = pruned_part.mm(gram).mul_(support);                     // [rows, in]
  at::Tensor solution = at::zeros_like(residual);
  at::Tensor direction = residual * preconditioner;
  at::Tensor rho = row_dot(residual, direction);
  for (int iteration = 0; iteration < kIterations; ++iteration) {
    const at::Tensor image = direction.mm(gram).mul_(support).add_(direction, lambda);
    const at::Tensor step = quotient(rho, row_dot(direction, image));
    solution.addcmul_(direction, step);
    residual.addcmul_(image, step, -1);
    const at::Tensor scaled = residual * preconditioner;
    const at::Tensor next = row_dot(residual, scaled);
    direction.mul_(quotient(next, rho)).add_(scaled);
    rho = next;
  }
  return solution;
}

}  // namespace

at::Tensor least_squares(const at::Tensor& dense, const at::Tensor& mask, const at::Tensor& gram,
                         double ridge) {
  const at::NoGradGuard no_graph;
  const double mean = gram.diagonal().mean().item<double>();
  const double lambda = std::max(ridge * mean, double(std::numeric_limits<float>::min()));
  at::Tensor fitted = at::empty(dense.sizes(), dense.options().dtype(at::kFloat));
  for (int64_t first = 0; first < dense.size(0); first += kRows) {
    const int64_t rows = std::min(kRows, dense.size(0) - first);
    const at::Tensor values = dense.narrow(0, first, rows).to(at::kFloat);
    const at::Tensor support = mask.narrow(0, first, rows).to(at::kFloat);
    const at::Tensor kept = values * support;
    fitted.narrow(0, first, rows).copy_(increment(values - kept, support, gram, lambda).add_(kept));
  }
  return fitted;
}

at::Tensor least_squares_as_written(const at::Tensor& dense, const at::Tensor& mask,
                                    const at::Tensor& gram, double ridge) {
  return least_squares(dense, mask, gram, ridge)
      .to(dense.scalar_type())
      .add_(0)  // no −0
      .masked_fill_(mask.logical_not(), 0);
}

double least_squares_flop(int64_t out, int64_t in) {
  return (kIterations + 1) * 2.0 * static_cast<double>(out) * static_cast<double>(in) *
         static_cast<double>(in);
}

double least_squares_bytes(int64_t out, int64_t in) {
  // Values, support, kept and pruned part; residual, solution, direction, image, scaled, a product.
  return 10.0 * 4 * static_cast<double>(std::min(kRows, out)) * static_cast<double>(in);
}

}  // namespace coppice
