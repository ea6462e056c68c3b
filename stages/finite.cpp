#include "stages/finite.h"

#include <ATen/ops/isfinite.h>
#include <ATen/ops/sum.h>

#include <cmath>

#include "stages/errors.h"

namespace coppice {

void require_finite(const std::string& name, const at::Tensor& tensor) {
  // A sum is finite unless an element is not, or unless it overflows: only then are they counted.
  if (std::isfinite(at::sum(tensor).item<double>())) return;
  const int64_t num_finite = at::isfinite(tensor).sum().item<int64_t>();
  if (num_finite == tensor.numel()) return;
  throw NumericalError(name, tensor.numel() - num_finite, tensor.numel());
}

void require_storable(const std::string& name, const at::Tensor& tensor, const std::string& dtype) {
  require_finite(name, tensor);
  if (dtype == "F16") require_finite(name + " in float16", tensor.to(at::kHalf));
}

double share_of_zeros(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  const int64_t num_zeros = tensor.numel() - tensor.count_nonzero().item<int64_t>();
  return static_cast<double>(num_zeros) / static_cast<double>(tensor.numel());
}

}  // namespace coppice
