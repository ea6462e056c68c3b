// Rotary embedding applied to attention heads, in one pass.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

enum class Turn { kForward, kBack };  // kBack, by the negative angle, is the derivative of kForward

/// x·cos + rotate_half(x)·sin with rotate_half([a, b]) = [−b, a]; products and sum rounded to the
/// dtype. x         [batch, heads, length, head_dim], any strides with contiguous heads cos, sin
/// [length, head_dim], contiguous, dtype of x, both halves equal returns   the shape of x, on the
/// CPU laid out [batch, length, heads, head_dim] so that heads lie side
///           by side as the linears want them. Not part of an autograd graph.
at::Tensor rotate_halves(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin,
                         Turn turn);

}  // namespace coppice
