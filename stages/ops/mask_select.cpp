#include "stages/ops/mask_select.h"

#include <ATen/ops/empty.h>
#include <fmt/ranges.h>

#include <cmath>
#include <stdexcept>

#include "stages/errors.h"                  // NumericalError
#include "stages/ops/mask_select_detail.h"  // one implementation per device

namespace coppice {
namespace detail {
#ifndef COPPICE_WITH_CUDA  // no kernel was compiled: its launch ends here
namespace {
constexpr char kNoKernel[] =
    "mask_select: scores lie on a GPU, but this program was built without CUDA";
}
int64_t mask_rows_cuda(const at::Tensor&, int64_t, at::Tensor&) {
  throw std::runtime_error(kNoKernel);
}
int64_t mask_matrix_cuda(const at::Tensor&, int64_t, at::Tensor&) {
  throw std::runtime_error(kNoKernel);
}
int64_t mask_groups_cuda(const at::Tensor&, int, int, at::Tensor&) {
  throw std::runtime_error(kNoKernel);
}
#endif

void require_groups(int num_kept, int group_size, int64_t columns) {
  if (num_kept <= 0 || num_kept >= group_size || group_size > kMaxGroupSize) {
    throw std::invalid_argument(fmt::format("pattern {}:{}: expected N:M with 0 < N < M <= {}",
                                            num_kept, group_size, kMaxGroupSize));
  }
  if (columns % group_size != 0) {
    throw std::invalid_argument(fmt::format("pattern {}:{}: in = {} is no multiple of {}", num_kept,
                                            group_size, columns, group_size));
  }
}

}  // namespace detail

namespace {

at::Tensor checked(const at::Tensor& scores) {
  if (scores.dim() != 2 || scores.scalar_type() != at::kFloat) {
    throw std::invalid_argument(
        fmt::format("mask_select: expected scores [out, in] in Float, found "
                    "[{}] in {}",
                    fmt::join(scores.sizes(), ", "), c10::toString(scores.scalar_type())));
  }
  return scores.contiguous();
}

at::Tensor empty_mask(const at::Tensor& scores) {
  return at::empty(scores.sizes(), scores.options().dtype(at::kBool));
}

void require_finite(int64_t num_not_finite, const at::Tensor& scores) {
  if (num_not_finite != 0) throw NumericalError("scores", num_not_finite, scores.numel());
}

}  // namespace

int64_t num_pruned(double sparsity, int64_t num_scores) {
  if (!(sparsity >= 0 && sparsity <= 1)) {
    throw std::invalid_argument(
        fmt::format("sparsity: expected a fraction of zeros from 0 to 1, found {}", sparsity));
  }
  const double product = sparsity * static_cast<double>(num_scores);
  const double above = std::ceil(product);
  const double count = above - product < 1e-12 * product ? above : std::floor(product);
  return static_cast<int64_t>(count);
}

at::Tensor keep_mask_by_row(const at::Tensor& any_scores, double sparsity) {
  const at::Tensor scores = checked(any_scores);
  const int64_t count = num_pruned(sparsity, scores.size(1));
  at::Tensor keep = empty_mask(scores);
  require_finite(scores.is_cuda() ? detail::mask_rows_cuda(scores, count, keep)
                                  : detail::mask_rows_cpu(scores, count, keep),
                 scores);
  return keep;
}

at::Tensor keep_mask_by_matrix(const at::Tensor& any_scores, double sparsity) {
  const at::Tensor scores = checked(any_scores);
  const int64_t count = num_pruned(sparsity, scores.numel());
  at::Tensor keep = empty_mask(scores);
  require_finite(scores.is_cuda() ? detail::mask_matrix_cuda(scores, count, keep)
                                  : detail::mask_matrix_cpu(scores, count, keep),
                 scores);
  return keep;
}

at::Tensor keep_mask_n_of_m(const at::Tensor& any_scores, int num_kept, int group_size) {
  const at::Tensor scores = checked(any_scores);
  detail::require_groups(num_kept, group_size, scores.size(1));
  const int count = group_size - num_kept;
  at::Tensor keep = empty_mask(scores);
  require_finite(scores.is_cuda() ? detail::mask_groups_cuda(scores, count, group_size, keep)
                                  : detail::mask_groups_cpu(scores, count, group_size, keep),
                 scores);
  return keep;
}

}  // namespace coppice
