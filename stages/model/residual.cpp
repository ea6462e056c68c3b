#include "stages/model/residual.h"

#include <ATen/ops/linear.h>

#include "stages/model/norm.h"

namespace coppice {
namespace {

/// Null where the half has no norm at that side.
const Norm* norm_at(const BlockWeights& weights, const std::string& side, Half half) {
  const auto norm = weights.norms.find(side + (half == Half::kAttention ? "attention" : "mlp"));
  return norm == weights.norms.end() ? nullptr : &norm->second;
}

}  // namespace

FirstLinears first_linears(const Architecture& architecture, const BlockWeights& weights, Half half,
                           const std::vector<std::string>& roles, const at::Tensor& x) {
  std::vector<const Linear*> linears;
  linears.reserve(roles.size());
  for (const std::string& role : roles) linears.push_back(&weights.linears.at(role));
  if (const Norm* norm = norm_at(weights, "before_", half)) {
    const NormedRows rows = norm_rows(architecture, *norm, x);
    return {rows.value, normed_linears(rows, *norm, linears)};
  }
  FirstLinears first{x, {}};
  for (const Linear* linear : linears) {
    const Linear used = converted(*linear, x.scalar_type());
    first.outputs.push_back(at::linear(x, used.weight, used.bias));
  }
  return first;
}

at::Tensor back_to_stream(const Architecture& architecture, const BlockWeights& weights, Half half,
                          const at::Tensor& units, const at::Tensor& x) {
  const Linear last =
      converted(weights.linears.at(architecture.last_linear(half).role), units.scalar_type());
  const at::Tensor sum = at::linear(units, last.weight, last.bias).add_(x);
  const Norm* norm = norm_at(weights, "after_", half);
  return norm == nullptr ? sum : normed(architecture, *norm, sum);
}

}  // namespace coppice
