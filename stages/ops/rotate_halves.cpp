#include "stages/ops/rotate_halves.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include "stages/ops/fused_on_cpu.h"
#include "stages/ops/rotate_halves_detail.h"

namespace coppice {

at::Tensor rotate_halves(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                         Turn turn) {
  const bool fits = x.is_cpu() && x.stride(3) == 1 && x.scalar_type() == cos.scalar_type();
  if (fits && fused_on_cpu({cos, sin})) {
    at::Tensor rotated =
        at::empty({x.size(0), x.size(2), x.size(1), x.size(3)}, x.options()).transpose(1, 2);
    detail::rotate_halves_cpu(x, cos, sin, turn == Turn::kForward ? 1.0f : -1.0f, rotated);
    return rotated;
  }
  const int64_t half = x.size(3) / 2;
  const at::Tensor first = x.narrow(3, 0, half);
  const at::Tensor second = x.narrow(3, half, half);
  const at::Tensor turned = turn == Turn::kForward ? at::cat({second.neg(), first}, 3)
                                                   : at::cat({second, first.neg()}, 3);
  return (x * cos).add_(turned * sin);
}

}  // namespace coppice
