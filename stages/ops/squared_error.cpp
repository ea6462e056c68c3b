#include "stages/ops/squared_error.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <stdexcept>

#include "stages/ops/fused_on_cpu.h"
#include "stages/ops/squared_error_detail.h"

namespace coppice {
namespace {

void require_same_shape(const at::Tensor& output, const at::Tensor& target) {
  if (output.sizes() == target.sizes()) return;
  throw std::invalid_argument("squared error: the output has " + std::to_string(output.size(0)) +
                              " tokens of width " + std::to_string(output.size(1)) +
                              ", the target " + std::to_string(target.size(0)) + " of " +
                              std::to_string(target.size(1)));
}

at::Tensor run_cpu(const at::Tensor& output, const at::Tensor& target, double scale,
                   at::Tensor gradient) {
  at::Tensor row_sums = at::empty({output.size(0)}, output.options().dtype(at::kFloat));
  detail::squared_error_cpu(output, target, static_cast<float>(scale), gradient, row_sums);
  return row_sums.sum(at::kDouble);
}

at::Tensor difference_of(const at::Tensor& output, const at::Tensor& target) {
  const at::ScalarType wide = output.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return output.to(wide) - target.to(wide);
}

}  // namespace

at::Tensor squared_error(const at::Tensor& output, const at::Tensor& target) {
  require_same_shape(output, target);
  if (fused_on_cpu({output, target})) return run_cpu(output, target, 0, {});
  return difference_of(output, target).square_().sum(1).sum(at::kDouble);
}

at::Tensor squared_error_gradient_(at::Tensor& output, const at::Tensor& target, double scale) {
  require_same_shape(output, target);
  if (fused_on_cpu({output, target})) return run_cpu(output, target, scale, output);
  const at::Tensor difference = difference_of(output, target);
  output.copy_(difference * scale);
  return difference.square().sum(1).sum(at::kDouble);
}

}  // namespace coppice
