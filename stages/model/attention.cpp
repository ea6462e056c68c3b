// The attention half of a block.
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <algorithm>

#include "stages/model/block_forward.h"
#include "stages/model/norm.h"

namespace coppice {
namespace {

/// Projections of sequences of equal length, as heads.
struct Heads {
  at::Tensor q;  // [batch, heads, length, head_dim]
  at::Tensor k;  // [batch, kv_heads, length, head_dim]
  at::Tensor v;
};

at::Tensor as_heads(const at::Tensor& x, int64_t length, int64_t head_dim) {
  return x.view({x.size(0) / length, length, x.size(1) / head_dim, head_dim}).transpose(1, 2);
}

/// Causal attention of one batch → [batch · length, heads · head_dim].
at::Tensor attend(const Heads& heads, const RotaryTable& rotary) {
  const bool is_grouped = heads.q.size(1) != heads.k.size(1);
  const at::Tensor mixed = at::scaled_dot_product_attention(
      rotate(heads.q, rotary), rotate(heads.k, rotary), heads.v, /*attn_mask=*/{},
      /*dropout_p=*/0.0, /*is_causal=*/true, /*scale=*/std::nullopt, /*enable_gqa=*/is_grouped);
  const int64_t tokens = mixed.size(0) * mixed.size(2);
  return mixed.transpose(1, 2).reshape({tokens, mixed.size(1) * mixed.size(3)});
}

/// Sequences of one length are one batch; others are attended to one after the other.
at::Tensor attend_sequences(const std::vector<at::Tensor>& qkv, const std::vector<int>& lengths,
                            int64_t head_dim, const RotaryTable& rotary) {
  const auto heads_of = [&](int64_t first_token, int64_t tokens, int64_t length) {
    const auto part = [&](const at::Tensor& x) {
      return as_heads(x.narrow(0, first_token, tokens), length, head_dim);
    };
    return Heads{part(qkv[0]), part(qkv[1]), part(qkv[2])};
  };
  const int64_t first_length = lengths.front();
  if (std::all_of(lengths.begin(), lengths.end(), [&](int n) { return n == first_length; })) {
    return attend(heads_of(0, qkv[0].size(0), first_length), rotary);
  }
  std::vector<at::Tensor> outputs;
  int64_t first_token = 0;
  for (const int length : lengths) {
    outputs.push_back(attend(heads_of(first_token, length, length), rotary));
    first_token += length;
  }
  return at::cat(outputs, 0);
}

}  // namespace

at::Tensor attention_half(const Architecture& architecture, const BlockWeights& weights,
                          const RotaryTable& rotary, const MicroBatch& x,
                          const InputObserver& observe) {
  const std::map<std::string, Linear>& linears = weights.linears;
  const at::Tensor x_hat = rms_normalize(x.hidden, architecture.norm_epsilon);
  at::Tensor normed;
  const std::vector<at::Tensor> qkv =
      normed_linears(x_hat, weights.norms.at("before_attention"),
                     {&linears.at("q"), &linears.at("k"), &linears.at("v")}, &normed);
  if (observe) observe(architecture.linear("q").input, normed);
  const at::Tensor mixed = attend_sequences(qkv, x.lengths, architecture.head_dim, rotary);
  if (observe) observe(architecture.linear("o").input, mixed);
  const Linear o = converted(linears.at("o"), mixed.scalar_type());
  return at::linear(mixed, o.weight, o.bias).add_(x.hidden);
}

}  // namespace coppice
