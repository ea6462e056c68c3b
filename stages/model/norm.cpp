#include "stages/model/norm.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/mul.h>

#include "stages/model/differentiable.h"

namespace coppice {

at::Tensor rms_normalize(const at::Tensor& x, double epsilon) {
  return differentiable::rms_normalize(x, epsilon);
}

std::vector<at::Tensor> normed_linears(const at::Tensor& x_hat, const at::Tensor& gain,
                                       const std::vector<const Linear*>& linears,
                                       at::Tensor* observed) {
  at::Tensor normed;
  {
    const at::NoGradGuard no_graph;  // the linears' own nodes know the way back to gain and x̂
    normed = at::mul(gain.to(x_hat.scalar_type()), x_hat);
  }
  if (observed != nullptr) *observed = normed;
  std::vector<at::Tensor> outputs;
  for (const Linear* linear : linears) {
    const Linear used = converted(*linear, normed.scalar_type());
    outputs.push_back(differentiable::normed_linear(x_hat, gain, normed, used.weight, used.bias));
  }
  return outputs;
}

}  // namespace coppice
