// Which tokens go through which expert of a mixture, and what their outputs are worth.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "stages/model/architecture.h"

namespace coppice {

/// Expert after expert, its tokens in ascending order.
struct Routing {
  std::vector<int64_t> counts;  // tokens of each expert
  at::Tensor tokens;            // [Σ counts] int64: row numbers; every token per_token times
  at::Tensor weights;           // [Σ counts, 1], of the expert's output for that token
};

/// logits [tokens, experts] → the experts.per_token most probable ones of each token. The softmax
/// is in fp32, and so are the weights unless the family rounds them. Differentiable in the logits,
/// as far as the weights go. Waits for the device: the counts shape all that follows. Source:
/// transformers' routers of these families.
Routing route(const ExpertSpec& experts, const at::Tensor& logits);

}  // namespace coppice
