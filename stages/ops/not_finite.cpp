#include "stages/ops/not_finite.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/count_nonzero.h>
#include <ATen/ops/scalar_tensor.h>

#include <stdexcept>

#include "stages/ops/not_finite_detail.h"

namespace coppice {

void add_not_finite(at::Tensor& count, const at::Tensor& x) {
  const at::ScalarType dtype = x.scalar_type();
  if (dtype != at::kFloat && dtype != at::kBFloat16 && dtype != at::kHalf) {
    throw std::invalid_argument(
        std::string("not_finite: expected Float, BFloat16 or Half, found ") + c10::toString(dtype));
  }
  const at::Tensor more =
      x.is_cpu() ? at::scalar_tensor(detail::count_not_finite_cpu(x.contiguous()), at::kLong)
                 : at::count_nonzero(x - x);  // NaN where one is not finite
  count = count.defined() ? count.add_(more) : more;
}

}  // namespace coppice
