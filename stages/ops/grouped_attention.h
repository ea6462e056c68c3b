// Attention in which several query heads share a key-value head.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

enum class Causal { kNo, kYes };

/// softmax(q kᵀ / √head_dim) v, head by head; query head h reads key-value head
/// h / (heads / kv_heads). A part of autograd's graph where that is wanted.
///   q        [batch, heads, length, head_dim]
///   k, v     [batch, kv_heads, keys, head_dim], kv_heads divides heads
///   mask     bool [length, keys], true where a query sees a key; undefined: everywhere
///   causal   beside no mask: queries see no keys behind them
///   returns  [batch, heads, length, head_dim], all of one float dtype and device
at::Tensor grouped_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& mask, Causal causal);

}  // namespace coppice
