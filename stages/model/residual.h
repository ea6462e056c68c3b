// How a half reads from the residual stream and writes to it: where its norms are.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "stages/model/block_weights.h"

namespace coppice {

/// What the first linears of a half read, and what they give.
struct FirstLinears {
  at::Tensor input;                 // [tokens, hidden]: x, under the norm before the half if any
  std::vector<at::Tensor> outputs;  // in the order asked for
};
FirstLinears first_linears(const Architecture& architecture, const BlockWeights& weights, Half half,
                           const std::vector<std::string>& roles, const at::Tensor& x);

/// x + W units + b by the half's last linear, under the norm after the half if any.
at::Tensor back_to_stream(const Architecture& architecture, const BlockWeights& weights, Half half,
                          const at::Tensor& units, const at::Tensor& x);

}  // namespace coppice
