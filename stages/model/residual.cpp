#include "stages/model/residual.h"

#include <ATen/ops/linear.h>

namespace coppice {
namespace {

/// Null where the half has no norm at that side.
const Norm* norm_at(const BlockWeights& weights, const std::string& side, Half half) {
  const auto norm = weights.norms.find(side + (half == Half::kAttention ? "attention" : "mlp"));
  return norm == weights.norms.end() ? nullptr : &norm->second;
}

}  // namespace

HalfInput half_input(const Architecture& architecture, const BlockWeights& weights, Half half,
                     const at::Tensor& x) {
  const Norm* norm = norm_at(weights, "before_", half);
  if (norm == nullptr) return {{{}, x}, nullptr};
  return {norm_rows(architecture, *norm, x), norm};
}

std::vector<HalfInput> parts_of(const HalfInput& input, const at::Tensor& tokens,
                                const std::vector<int64_t>& counts) {
  std::vector<HalfInput> parts(counts.size(), HalfInput{{}, input.norm});
  const auto cut = [&](at::Tensor NormedRows::*rows) {
    const at::Tensor& all = input.rows.*rows;
    if (!all.defined()) return;
    const std::vector<at::Tensor> cuts = all.index_select(0, tokens).split_with_sizes(counts);
    for (size_t part = 0; part < parts.size(); ++part) parts[part].rows.*rows = cuts[part];
  };
  cut(&NormedRows::x_hat);
  cut(&NormedRows::value);
  return parts;
}

std::vector<at::Tensor> outputs_of(const HalfInput& input,
                                   const std::vector<const Linear*>& linears) {
  if (input.norm != nullptr) return normed_linears(input.rows, *input.norm, linears);
  std::vector<at::Tensor> outputs;
  outputs.reserve(linears.size());
  for (const Linear* linear : linears) outputs.push_back(output_of(*linear, input.rows.value));
  return outputs;
}

at::Tensor output_of(const Linear& linear, const at::Tensor& x) {
  const Linear used = converted(linear, x.scalar_type());
  return at::linear(x, used.weight, used.bias);
}

at::Tensor back_to_stream(const Architecture& architecture, const BlockWeights& weights, Half half,
                          at::Tensor output, const at::Tensor& x) {
  const at::Tensor sum = output.add_(x);
  const Norm* norm = norm_at(weights, "after_", half);
  return norm == nullptr ? sum : normed(architecture, *norm, sum);
}

}  // namespace coppice
