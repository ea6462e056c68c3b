// One block as two halves, each including its residual stream.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "stages/activations.h"
#include "stages/model/block_weights.h"
#include "stages/model/rotary.h"

namespace coppice {

/// Told every tensor that linears read, [tokens, in], once per group of linears sharing it
/// (LinearSpec::input), in the compute dtype.
using InputObserver = std::function<void(const std::string& input, const at::Tensor& x)>;

/// x → x + o(attention(q, k, v of norm(x))). Causal within each sequence; grouped-query heads.
/// x.hidden and the weights share a device. Weights of another dtype are converted to that of x for
/// the length of their product: slower, the same bits. Differentiable in the weights, biases and
/// gain, and in x, where they require it. Rounding points are those of transformers' code.
at::Tensor attention_half(const Architecture& architecture, const BlockWeights& weights,
                          const RotaryTable& rotary, const MicroBatch& x,
                          const InputObserver& observe = {});

/// x → x + down(activation(gate(norm(x))) ∘ up(norm(x))). Otherwise as attention_half.
at::Tensor mlp_half(const Architecture& architecture, const BlockWeights& weights,
                    const MicroBatch& x, const InputObserver& observe = {});

/// The half with that number parity.
at::Tensor forward_half(Half half, const Architecture& architecture, const BlockWeights& weights,
                        const RotaryTable& rotary, const MicroBatch& x,
                        const InputObserver& observe = {});

}  // namespace coppice
