// The tensors of one block by role.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>

#include "stages/model/architecture.h"

namespace coppice {

struct Linear {
  at::Tensor weight;  // [out, in]
  at::Tensor bias;    // [out], undefined where the linear has none
};

struct Norm {
  at::Tensor gain;  // [size]
  at::Tensor bias;  // [size], undefined where the kind of norm has none
};

/// Keys are the roles of the architecture. Tensors may view memory owned by somebody else (a slot).
struct BlockWeights {
  std::map<std::string, Linear> linears;
  std::map<std::string, Norm> norms;
  at::Tensor router;  // [experts, hidden], undefined where there are none
};

/// Gathers a block by asking `tensor` for each full name of block_tensors().
BlockWeights gather_block(const Architecture& architecture, int block,
                          const std::function<at::Tensor(const std::string& name)>& tensor);

/// Gathers a norm by asking for its ".weight", and for its ".bias" where the kind has one.
Norm gather_norm(const Architecture& architecture, const std::string& name,
                 const std::function<at::Tensor(const std::string& name)>& tensor);

/// The linear or norm in another dtype; what already has it is shared.
Linear converted(const Linear& linear, at::ScalarType dtype);
Norm converted(const Norm& norm, at::ScalarType dtype);

/// A copy of the tensors of `half` in another dtype; tensors that already have it are shared.
BlockWeights converted(const Architecture& architecture, const BlockWeights& weights, Half half,
                       at::ScalarType dtype);

/// Throws NumericalError naming the first tensor of the block that holds NaN or infinity.
void require_finite(const Architecture& architecture, int block, const BlockWeights& weights);

}  // namespace coppice
