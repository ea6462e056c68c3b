// The attention half of a block.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

#include <algorithm>

#include "stages/model/attention_pieces.h"
#include "stages/model/block_forward.h"
#include "stages/model/norm.h"
#include "stages/model/residual.h"
#include "stages/ops/grouped_attention.h"

namespace coppice {
namespace {

/// Projections of sequences of equal length, as heads.
struct Heads {
  at::Tensor q;  // [batch, heads, length, head_dim]
  at::Tensor k;  // [batch, kv_heads, length, head_dim]
  at::Tensor v;
};

/// Of one block: whom a token attends to, and how positions enter.
struct Attention {
  AttentionMask mask;
  int64_t window;  // 0: none
  int64_t head_dim;
  const RotaryTable& rotary;
};

at::Tensor as_heads(const at::Tensor& x, int64_t length, int64_t head_dim) {
  return x.view({x.size(0) / length, length, x.size(1) / head_dim, head_dim}).transpose(1, 2);
}

/// Each token sees itself and the window − 1 before it. Source: the mask of transformers'
/// masking_utils, sliding_window_causal_mask_function.
at::Tensor attend_window(const Heads& heads, int64_t window) {
  const at::TensorOptions index = heads.q.options().dtype(at::kInt);
  std::vector<at::Tensor> outputs;
  for (const AttentionPiece& piece : attention_pieces(heads.q.size(2), window)) {
    const at::Tensor distance = at::arange(piece.first, piece.last, index).unsqueeze(1) -
                                at::arange(piece.seen, piece.last, index);  // [tokens, keys]
    outputs.push_back(grouped_attention(
        heads.q.narrow(2, piece.first, piece.tokens()), heads.k.narrow(2, piece.seen, piece.keys()),
        heads.v.narrow(2, piece.seen, piece.keys()),
        distance.ge(0).logical_and_(distance.lt(window)), Causal::kNo));
  }
  return outputs.size() == 1 ? outputs.front() : at::cat(outputs, 2);
}

/// Attention of one batch → [batch · length, heads · head_dim].
at::Tensor attend(const Attention& attention, Heads heads) {
  if (attention.rotary.cos.defined()) {
    heads.q = rotate(heads.q, attention.rotary);
    heads.k = rotate(heads.k, attention.rotary);
  }
  const bool is_windowed = attention.window > 0 && attention.window < heads.q.size(2);
  const Causal causal = attention.mask == AttentionMask::kCausal ? Causal::kYes : Causal::kNo;
  const at::Tensor mixed = is_windowed ? attend_window(heads, attention.window)
                                       : grouped_attention(heads.q, heads.k, heads.v, {}, causal);
  const int64_t tokens = mixed.size(0) * mixed.size(2);
  return mixed.transpose(1, 2).reshape({tokens, mixed.size(1) * mixed.size(3)});
}

/// Sequences of one length are one batch; others are attended to one after the other.
at::Tensor attend_sequences(const Attention& attention, const std::vector<at::Tensor>& qkv,
                            const std::vector<int>& lengths) {
  const auto heads_of = [&](int64_t first_token, int64_t tokens, int64_t length) {
    const auto part = [&](const at::Tensor& x) {
      return as_heads(x.narrow(0, first_token, tokens), length, attention.head_dim);
    };
    return Heads{part(qkv[0]), part(qkv[1]), part(qkv[2])};
  };
  const int64_t first_length = lengths.front();
  if (std::all_of(lengths.begin(), lengths.end(), [&](int n) { return n == first_length; })) {
    return attend(attention, heads_of(0, qkv[0].size(0), first_length));
  }
  std::vector<at::Tensor> outputs;
  int64_t first_token = 0;
  for (const int length : lengths) {
    outputs.push_back(attend(attention, heads_of(first_token, length, length)));
    first_token += length;
  }
  return at::cat(outputs, 0);
}

/// Every head of x [tokens, heads · head_dim] under a norm over head_dim, where there is one.
void norm_heads(const Architecture& architecture, const BlockWeights& weights,
                const std::string& role, at::Tensor& x) {
  const auto norm = weights.norms.find(role);
  if (norm == weights.norms.end()) return;
  const at::Tensor heads = x.reshape({-1, architecture.head_dim});
  x = normed(architecture, norm->second, heads).view(x.sizes());
}

}  // namespace

at::Tensor attention_half(const Architecture& architecture, int block, const BlockWeights& weights,
                          const RotaryTable& rotary, const MicroBatch& x,
                          const InputObserver& observe) {
  const auto linear = [&](const char* role) { return &weights.linears.at(role); };
  const HalfInput input = half_input(architecture, weights, Half::kAttention, x.hidden);
  if (observe) observe(architecture.first_linear(Half::kAttention).input, input.rows.value);
  std::vector<at::Tensor> qkv = outputs_of(input, {linear("q"), linear("k"), linear("v")});
  norm_heads(architecture, weights, "q_norm", qkv[0]);
  norm_heads(architecture, weights, "k_norm", qkv[1]);
  const Attention attention{architecture.mask, architecture.attention_window(block),
                            architecture.head_dim, rotary};
  const at::Tensor mixed = attend_sequences(attention, qkv, x.lengths);
  if (observe) observe(architecture.last_linear(Half::kAttention).input, mixed);
  return back_to_stream(architecture, weights, Half::kAttention, output_of(*linear("o"), mixed),
                        x.hidden);
}

}  // namespace coppice
