#include "stages/model/block_weights.h"

#include "stages/finite.h"

namespace coppice {
BlockWeights gather_block(const Architecture& architecture, int block,
                          const std::function<at::Tensor(const std::string& name)>& tensor) {
  BlockWeights weights;
  for (const LinearSpec& spec : architecture.linears) {
    const std::string name = in_block(architecture, block, spec.name);
    Linear& linear = weights.linears[spec.role];
    linear.weight = tensor(name + ".weight");
    if (spec.has_bias) linear.bias = tensor(name + ".bias");
  }
  for (const NormSpec& spec : architecture.norms) {
    weights.norms[spec.role] = tensor(in_block(architecture, block, spec.name) + ".weight");
  }
  return weights;
}

Linear converted(const Linear& linear, at::ScalarType dtype) {
  return {linear.weight.to(dtype), linear.bias.defined() ? linear.bias.to(dtype) : at::Tensor()};
}

BlockWeights converted(const Architecture& architecture, const BlockWeights& weights, Half half,
                       at::ScalarType dtype) {
  BlockWeights result;
  for (const LinearSpec& spec : architecture.linears) {
    if (spec.half != half) continue;
    result.linears[spec.role] = converted(weights.linears.at(spec.role), dtype);
  }
  for (const NormSpec& spec : architecture.norms) {
    if (spec.half == half) result.norms[spec.role] = weights.norms.at(spec.role).to(dtype);
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
  for (const NormSpec& spec : architecture.norms) {
    const std::string name = in_block(architecture, block, spec.name) + ".weight";
    require_finite(name, weights.norms.at(spec.role));
  }
}

}  // namespace coppice
