#include "stages/ops/column_squares.h"

#include <ATen/ops/sum.h>

#include <stdexcept>

#include "stages/ops/column_squares_detail.h"
#include "stages/ops/fused_on_cpu.h"

namespace coppice {

void add_column_squares(at::Tensor& sums, const at::Tensor& x) {
  if (sums.size(0) != x.size(1)) {
    throw std::invalid_argument("column squares: there are " + std::to_string(sums.size(0)) +
                                " sums for " + std::to_string(x.size(1)) + " columns");
  }
  if (fused_on_cpu({x})) return detail::add_column_squares_cpu(sums, x);
  const at::Tensor wide = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  sums.add_(wide.square().sum({0}, /*keepdim=*/false, at::kDouble));
}

}  // namespace coppice
