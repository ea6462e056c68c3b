#include "stages/model/norm.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/mul.h>

#include <stdexcept>

#include "stages/model/differentiable.h"

namespace coppice {

at::Tensor rms_normalize(const at::Tensor& x, double epsilon) {
  return differentiable::rms_normalize(x, epsilon);
}

at::Tensor normed(const Architecture& architecture, const Norm& norm, const at::Tensor& x) {
  const Norm used = converted(norm, x.scalar_type());
  switch (architecture.norm_kind) {
    case NormKind::kRms:
      return at::mul(used.gain, rms_normalize(x, architecture.norm_epsilon));
    case NormKind::kLayer:
      return at::layer_norm(x, {x.size(1)}, used.gain, used.bias, architecture.norm_epsilon);
  }
  throw std::logic_error("a norm without a formula");
}

NormedRows norm_rows(const Architecture& architecture, const Norm& norm, const at::Tensor& x) {
  NormedRows rows;
  switch (architecture.norm_kind) {
    case NormKind::kRms:
      rows.x_hat = rms_normalize(x, architecture.norm_epsilon);
      break;
    case NormKind::kLayer:
      rows.x_hat = at::layer_norm(x, {x.size(1)}, {}, {}, architecture.norm_epsilon);
      break;
  }
  const at::NoGradGuard no_graph;  // the linears' own nodes know the way back to gain, bias and x̂
  rows.value = architecture.norm_kind == NormKind::kRms
                   ? at::mul(norm.gain.to(x.scalar_type()), rows.x_hat)
                   : normed(architecture, norm, x);
  return rows;
}

std::vector<at::Tensor> normed_linears(const NormedRows& rows, const Norm& norm,
                                       const std::vector<const Linear*>& linears) {
  const at::ScalarType dtype = rows.value.scalar_type();
  const Norm used_norm = converted(norm, dtype);
  std::vector<at::Tensor> outputs;
  outputs.reserve(linears.size());
  for (const Linear* linear : linears) {
    outputs.push_back(differentiable::normed_linear(rows.x_hat, rows.value, used_norm,
                                                    converted(*linear, dtype)));
  }
  return outputs;
}

}  // namespace coppice
