#include "stages/ops/rms_normalize.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "stages/ops/fused_on_cpu.h"
#include "stages/ops/rms_normalize_detail.h"

namespace coppice {
namespace {

at::ScalarType accumulation_type(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace

RmsNormalized rms_normalize_rows(const at::Tensor& x, double epsilon) {
  if (fused_on_cpu({x})) {
    RmsNormalized output{at::empty_like(x), at::empty({x.size(0)}, x.options().dtype(at::kFloat))};
    detail::rms_normalize_rows_cpu(x, epsilon, output.x_hat, output.inverse_rms);
    return output;
  }
  const at::Tensor wide = x.to(accumulation_type(x.scalar_type()));
  const at::Tensor inverse_rms = wide.square().mean(1, /*keepdim=*/true).add_(epsilon).rsqrt_();
  return {(wide * inverse_rms).to(x.scalar_type()), inverse_rms.squeeze(1)};
}

at::Tensor rms_normalize_rows_backward(const at::Tensor& gradient, const RmsNormalized& output) {
  const at::ScalarType wide = accumulation_type(gradient.scalar_type());
  const at::Tensor g = gradient.to(wide);
  const at::Tensor x_hat = output.x_hat.to(wide);
  const at::Tensor along = (g * x_hat).mean(1, /*keepdim=*/true);  // [tokens, 1]
  return (g - x_hat * along).mul_(output.inverse_rms.unsqueeze(1)).to(gradient.scalar_type());
}

}  // namespace coppice
