#include "stages/ops/column_sweep.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <stdexcept>

#include "stages/errors.h"  // NumericalError
#include "stages/ops/column_sweep_detail.h"
#include "stages/ops/mask_select_detail.h"  // what a pattern is

namespace coppice {
namespace detail {
#ifndef COPPICE_WITH_CUDA  // no kernel was compiled: its launch ends here
int64_t sweep_cuda(const Sweep&, const at::Tensor&) {
  throw std::runtime_error(
      "column_sweep: the weight lies on a GPU, but this program was built without CUDA");
}
#endif
}  // namespace detail

namespace {

/// All but what is kept. `factor` is contiguous, and outlives what is returned.
detail::Sweep sweep_of(at::Tensor& weight, at::Tensor& errors, const at::Tensor& factor) {
  if (weight.size(1) > kMaxSweepColumns) {
    throw std::invalid_argument(
        fmt::format("column_sweep: expected a lazy block of at most {} columns, found {}",
                    kMaxSweepColumns, weight.size(1)));
  }
  detail::Sweep sweep{};
  sweep.weight = weight.mutable_data_ptr<float>();
  sweep.errors = errors.mutable_data_ptr<float>();
  sweep.factor = factor.const_data_ptr<float>();
  sweep.rows = weight.size(0);
  sweep.columns = static_cast<int>(weight.size(1));
  return sweep;
}

int64_t run(const detail::Sweep& sweep, const at::Tensor& weight) {
  return weight.is_cuda() ? detail::sweep_cuda(sweep, weight) : detail::sweep_cpu(sweep);
}

}  // namespace

void sweep_columns_(at::Tensor& weight, at::Tensor& errors, const at::Tensor& keep,
                    const at::Tensor& factor) {
  const at::Tensor dense_keep = keep.contiguous(), dense_factor = factor.contiguous();
  detail::Sweep sweep = sweep_of(weight, errors, dense_factor);
  sweep.given = dense_keep.const_data_ptr<bool>();
  run(sweep, weight);
}

at::Tensor sweep_groups_(at::Tensor& weight, at::Tensor& errors, const at::Tensor& factor,
                         int num_kept, int group_size) {
  detail::require_groups(num_kept, group_size, weight.size(1));
  const at::Tensor dense_factor = factor.contiguous();
  at::Tensor keep = at::empty(weight.sizes(), weight.options().dtype(at::kBool));
  detail::Sweep sweep = sweep_of(weight, errors, dense_factor);
  sweep.chosen = keep.mutable_data_ptr<bool>();
  sweep.group_size = group_size;
  sweep.num_pruned = group_size - num_kept;
  const int64_t num_not_finite = run(sweep, weight);
  if (num_not_finite != 0) throw NumericalError("scores", num_not_finite, weight.numel());
  return keep;
}

}  // namespace coppice
