#include "stages/model/block_weights.h"

#include "stages/finite.h"

namespace coppice {
namespace {

at::Tensor converted(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.defined() ? tensor.to(dtype) : at::Tensor();
}

}  // namespace

BlockWeights gather_block(const Architecture& architecture, int block,
                          const std::function<at::Tensor(const std::string& name)>& tensor) {
  BlockWeights weights;
  for (const LinearSpec& spec : architecture.linears) {
    const std::string name = in_block(architecture, block, spec.name);
    Linear& linear = weights.linears[spec.role];
    linear.weight = tensor(name + ".weight");
    if (spec.has_bias) linear.bias = tensor(name + ".bias");
  }
  if (architecture.experts.count > 0) weights.router = tensor(router_tensor(architecture, block));
  for (const NormSpec& spec : architecture.norms) {
    weights.norms[spec.role] =
        gather_norm(architecture, in_block(architecture, block, spec.name), tensor);
  }
  return weights;
}

Norm gather_norm(const Architecture& architecture, const std::string& name,
                 const std::function<at::Tensor(const std::string& name)>& tensor) {
  return {tensor(name + ".weight"),
          architecture.norm_kind == NormKind::kLayer ? tensor(name + ".bias") : at::Tensor()};
}

Linear converted(const Linear& linear, at::ScalarType dtype) {
  return {linear.weight.to(dtype), converted(linear.bias, dtype)};
}

Norm converted(const Norm& norm, at::ScalarType dtype) {
  return {norm.gain.to(dtype), converted(norm.bias, dtype)};
}

BlockWeights converted(const Architecture& architecture, const BlockWeights& weights, Half half,
                       at::ScalarType dtype) {
  BlockWeights result;
  for (const LinearSpec& spec : architecture.linears) {
    if (spec.half != half) continue;
    result.linears[spec.role] = converted(weights.linears.at(spec.role), dtype);
  }
  if (architecture.has_experts(half)) result.router = converted(weights.router, dtype);
  for (const NormSpec& spec : architecture.norms) {
    if (spec.half != half) continue;
    result.norms[spec.role] = converted(weights.norms.at(spec.role), dtype);
  }
  return result;
}

void require_finite(const Architecture& architecture, int block, const BlockWeights& weights) {
  for (const LinearSpec& spec : architecture.linears) {
    const std::string name = in_block(architecture, block, spec.name);
    const Linear& linear = weights.linears.at(spec.role);
    require_finite(name + ".weight", linear.weight);
    if (linear.bias.defined()) require_finite(name + ".bias", linear.bias);
  }
  if (weights.router.defined()) {
    require_finite(router_tensor(architecture, block), weights.router);
  }
  for (const NormSpec& spec : architecture.norms) {
    const std::string name = in_block(architecture, block, spec.name);
    const Norm& norm = weights.norms.at(spec.role);
    require_finite(name + ".weight", norm.gain);
    if (norm.bias.defined()) require_finite(name + ".bias", norm.bias);
  }
}

}  // namespace coppice
