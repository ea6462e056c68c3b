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
/// (LinearSpec::input), in the compute dtype. Of an expert: the tokens routed to it, maybe none.
using InputObserver = std::function<void(const std::string& input, const at::Tensor& x)>;

/// x → x + o(attention(q, k, v of norm(x))), or norm(x + o(attention(q, k, v of x))) where the norm
/// comes after; masked as the architecture says within each sequence, and as its window of that
/// block; grouped-query heads. x.hidden and the weights share a device. Weights of another dtype
/// are converted to that of x for the length of their product: slower, the same bits.
/// Differentiable in the weights, biases and norms, and in x, where they require it. Rounding
/// points are those of transformers' code.
at::Tensor attention_half(const Architecture& architecture, int block, const BlockWeights& weights,
                          const RotaryTable& rotary, const MicroBatch& x,
                          const InputObserver& observe = {});

/// x → x + down(f(gate(norm(x))) ∘ up(norm(x))), without gate: x + down(f(up(norm(x)))); of a
/// mixture the sum over the experts that a token is routed to (see routing.h). An expert without
/// tokens is not computed, and gets no gradient. Otherwise as attention_half.
at::Tensor mlp_half(const Architecture& architecture, const BlockWeights& weights,
                    const MicroBatch& x, const InputObserver& observe = {});

/// Half-block `half` of the model, 2b or 2b + 1 for block b; `weights` are those of the block.
at::Tensor forward_half(int half, const Architecture& architecture, const BlockWeights& weights,
                        const RotaryTable& rotary, const MicroBatch& x,
                        const InputObserver& observe = {});

}  // namespace coppice
