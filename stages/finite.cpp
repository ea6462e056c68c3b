#include "stages/finite.h"

#include <ATen/ops/isfinite.h>
#include <ATen/ops/sum.h>

#include <cmath>
#include <utility>

#include "stages/errors.h"
#include "stages/ops/not_finite.h"

namespace coppice {

void require_finite(const std::string& name, const at::Tensor& tensor) {
  // A sum is finite unless an element is not, or unless it overflows: only then are they counted.
  if (std::isfinite(at::sum(tensor).item<double>())) return;
  const int64_t num_finite = at::isfinite(tensor).sum().item<int64_t>();
  if (num_finite == tensor.numel()) return;
  throw NumericalError(name, tensor.numel() - num_finite, tensor.numel());
}

StorableCheck::StorableCheck(std::string name, const std::string& dtype)
    : name_(std::move(name)), is_float16_(dtype == "F16") {}

void StorableCheck::add(const at::Tensor& tensor) {
  add_not_finite(num_not_finite_, is_float16_ ? tensor.to(at::kHalf) : tensor);
  num_elements_ += tensor.numel();
}

void StorableCheck::require() {
  if (!num_not_finite_.defined()) return;
  const auto num_not_finite = std::exchange(num_not_finite_, {}).item<int64_t>();
  const int64_t num_elements = std::exchange(num_elements_, 0);
  if (num_not_finite == 0) return;
  throw NumericalError(is_float16_ ? name_ + " in float16" : name_, num_not_finite, num_elements);
}

double share_of_zeros(const at::Tensor& tensor) {
  if (tensor.numel() == 0) return 0;
  const int64_t num_zeros = tensor.numel() - tensor.count_nonzero().item<int64_t>();
  return static_cast<double>(num_zeros) / static_cast<double>(tensor.numel());
}

}  // namespace coppice
