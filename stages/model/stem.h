// From rows of the embedding to the hidden states that enter the first block.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "stages/model/block_weights.h"

namespace coppice {

/// What is outside the blocks, before them, beside the embedding itself. Undefined: there is none.
struct StemWeights {
  at::Tensor project;     // [hidden, embedding_width]
  at::Tensor token_type;  // [hidden], of the first type
  at::Tensor positions;   // [first_position_row + at least a sequence, hidden]
  Norm norm;
};

/// Gathers it by asking `tensor` for every name of stem_tensors(). Of the positions the first rows
/// are enough, as many as there are tokens in a sequence after first_position_row.
StemWeights gather_stem(const Architecture& architecture,
                        const std::function<at::Tensor(const std::string& name)>& tensor);

/// rows [tokens, embedding_width] of one sequence, from its first token on → [tokens, hidden]:
/// norm(project rows + token type + positions), as far as the architecture has them. In the dtype
/// of the weights; rows alone are returned as they are.
at::Tensor embed(const Architecture& architecture, const StemWeights& weights,
                 const at::Tensor& rows);

}  // namespace coppice
