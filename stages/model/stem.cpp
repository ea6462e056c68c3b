#include "stages/model/stem.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>

#include "stages/model/norm.h"

namespace coppice {

StemWeights gather_stem(const Architecture& architecture,
                        const std::function<at::Tensor(const std::string& name)>& tensor) {
  StemWeights weights;
  if (!architecture.project_in.empty()) weights.project = tensor(architecture.project_in);
  if (!architecture.token_types.empty()) weights.token_type = tensor(architecture.token_types)[0];
  if (!architecture.positions.empty()) weights.positions = tensor(architecture.positions);
  if (!architecture.embedding_norm.empty()) {
    weights.norm = gather_norm(architecture, architecture.embedding_norm, tensor);
  }
  return weights;
}

// The order of transformers' sums: it decides where they round.
at::Tensor embed(const Architecture& architecture, const StemWeights& weights,
                 const at::Tensor& rows) {
  at::Tensor x = rows;
  if (weights.project.defined()) {
    x = at::linear(x.to(weights.project.scalar_type()), weights.project);
  }
  if (weights.token_type.defined()) x = x.to(weights.token_type.scalar_type()) + weights.token_type;
  if (weights.positions.defined()) {
    x = x.to(weights.positions.scalar_type()) +
        weights.positions.narrow(0, architecture.first_position_row, x.size(0));
  }
  if (weights.norm.gain.defined()) x = normed(architecture, weights.norm, x);
  return x;
}

}  // namespace coppice
