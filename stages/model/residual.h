// How a half reads from the residual stream and writes to it: where its norms are.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "stages/model/block_weights.h"
#include "stages/model/norm.h"

namespace coppice {

/// What the first linears of a half read, [tokens, hidden]: x, under the norm before the half if
/// any. `norm` is one of the weights it was made with.
struct HalfInput {
  NormedRows rows;
  const Norm* norm = nullptr;  // null: there is none, and rows.x_hat is undefined
};
HalfInput half_input(const Architecture& architecture, const BlockWeights& weights, Half half,
                     const at::Tensor& x);

/// The rows that `tokens` [Σ counts] int64 name, cut in parts of `counts` rows. On the way back all
/// parts become one gradient.
std::vector<HalfInput> parts_of(const HalfInput& input, const at::Tensor& tokens,
                                const std::vector<int64_t>& counts);

/// What linears make of it, in the order asked for.
std::vector<at::Tensor> outputs_of(const HalfInput& input,
                                   const std::vector<const Linear*>& linears);

/// x Wᵀ + b, in the dtype of x.
at::Tensor output_of(const Linear& linear, const at::Tensor& x);

/// x + output, under the norm after the half if any. Overwrites `output`.
at::Tensor back_to_stream(const Architecture& architecture, const BlockWeights& weights, Half half,
                          at::Tensor output, const at::Tensor& x);

}  // namespace coppice
