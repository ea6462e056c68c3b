#include "stages/model/half_cost.h"

#include <algorithm>

#include "stages/model/attention_pieces.h"

namespace coppice {
namespace {

/// Of one sequence, a token with one it attends to; itself by half where it is the last of them.
double attended_pairs(const Architecture& architecture, int64_t window, double seqlen) {
  if (architecture.mask == AttentionMask::kBidirectional) return seqlen * seqlen;
  const auto width = static_cast<double>(window);
  if (window == 0 || seqlen <= width) return seqlen * seqlen / 2;
  return width * width / 2 + (seqlen - width) * (width - 0.5);
}

/// Channels of all heads under norms of their own.
int64_t normed_head_channels(const Architecture& architecture, Half half) {
  int64_t channels = 0;
  for (const NormSpec& norm : architecture.norms) {
    if (norm.half != half) continue;
    if (norm.role == "q_norm") channels += architecture.heads * architecture.head_dim;
    if (norm.role == "k_norm") channels += architecture.kv_heads * architecture.head_dim;
  }
  return channels;
}

int64_t router_weights(const Architecture& architecture, Half half) {
  return architecture.has_experts(half) ? architecture.experts.count * architecture.hidden : 0;
}

/// Of one token through one linear of the half; the mean over experts.
double flop_a_token(const Architecture& architecture, const LinearSpec& linear) {
  return 2.0 * architecture.share_of_tokens(linear) * static_cast<double>(linear.out) *
         static_cast<double>(linear.in);
}

/// Whether it reads what enters the half.
bool is_first(const Architecture& architecture, const LinearSpec& linear) {
  return linear.part() != architecture.last_linear(linear.half).part();
}

/// Elements.
int64_t kept_a_token(const Architecture& architecture, Half half) {
  // x̂; x̂ and gain ∘ x̂ of heads.
  int64_t width = architecture.hidden + 2 * normed_head_channels(architecture, half);
  const LinearSpec& last = architecture.last_linear(half);
  int64_t outputs = last.in;  // and what the last one reads
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half && linear.expert <= 0) outputs += linear.out;  // of one expert
  }
  if (!architecture.has_experts(half)) return width + outputs;
  // Logits, probabilities and what the softmax keeps; of every expert of a token its rows of x̂ and
  // gain ∘ x̂, and the output before it is weighted.
  const ExpertSpec& experts = architecture.experts;
  return width + 3 * experts.count + experts.per_token * (outputs + 3 * architecture.hidden);
}

/// Elements beside what every token keeps: of attention in windows the masks of all pieces, which
/// sequences share, and the pieces' outputs; and keys and values where heads do not share them.
double kept_by_attention(const Architecture& architecture, const BatchShape& batch) {
  const auto channels = static_cast<double>(architecture.heads * architecture.head_dim);
  const auto of_keys = static_cast<double>(architecture.kv_heads * architecture.head_dim);
  const auto length = static_cast<double>(batch.seqlen);
  const bool has_groups = architecture.heads != architecture.kv_heads;
  double most = 0;
  if (!batch.is_host && has_groups && batch.element == 4) {  // in place of the shared ones
    most = batch.sequences * length * 2 * (channels - of_keys);
  }
  for (const int64_t window : architecture.attention_windows) {
    if (window == 0 || window >= batch.seqlen) continue;
    double masks = 0, keys = 0;
    for (const AttentionPiece& piece : attention_pieces(batch.seqlen, window)) {
      masks += static_cast<double>(piece.tokens() * piece.keys());
      keys += static_cast<double>(piece.keys());
    }
    const double spread = !batch.is_host && has_groups ? 2 * keys * channels : 0;
    most = std::max(most, masks + batch.sequences * (length * channels + spread));
  }
  return most;
}

/// Of the largest piece of attention in windows: how far every token is from every key, in 32 bits,
/// and three steps to its mask, in whose place they are.
double mask_making_bytes(const Architecture& architecture, const BatchShape& batch) {
  int64_t pairs = 0;
  for (const int64_t window : architecture.attention_windows) {
    if (window == 0 || window >= batch.seqlen) continue;
    for (const AttentionPiece& piece : attention_pieces(batch.seqlen, window)) {
      pairs = std::max(pairs, piece.tokens() * piece.keys());
    }
  }
  return static_cast<double>(pairs) * (4 + 3 - batch.element);
}

}  // namespace

int64_t half_parameters(const Architecture& architecture, Half half) {
  int64_t count = router_weights(architecture, half);
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half) count += linear.out * linear.in + (linear.has_bias ? linear.out : 0);
  }
  for (const NormSpec& norm : architecture.norms) {
    if (norm.half != half) continue;
    count += architecture.norm_kind == NormKind::kLayer ? 2 * norm.size : norm.size;
  }
  return count;
}

double linear_flop(const Architecture& architecture, Half half, double tokens) {
  double flop = 2.0 * static_cast<double>(router_weights(architecture, half));  // of a token
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half) flop += flop_a_token(architecture, linear);
  }
  return tokens * flop;
}

double first_linear_flop(const Architecture& architecture, Half half, double tokens) {
  double flop = 2.0 * static_cast<double>(router_weights(architecture, half));  // of a token
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half && is_first(architecture, linear)) {
      flop += flop_a_token(architecture, linear);
    }
  }
  return tokens * flop;
}

std::map<std::string, ReadInput> inputs_of(const Architecture& architecture, Half half) {
  std::map<std::string, ReadInput> inputs;
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half != half) continue;
    inputs[linear.input] = {linear.in, architecture.share_of_tokens(linear)};
  }
  return inputs;
}

double attention_flop(const Architecture& architecture, Half half, double tokens, double seqlen) {
  if (half != Half::kAttention) return 0;
  double pairs = attended_pairs(architecture, 0, seqlen);  // of a token with one it attends to
  if (!architecture.attention_windows.empty()) {
    pairs = 0;
    for (const int64_t window : architecture.attention_windows) {
      pairs += attended_pairs(architecture, window, seqlen) /
               static_cast<double>(architecture.attention_windows.size());
    }
  }
  // Scores and their weighted sum, a multiplication and an addition each.
  const double width = static_cast<double>(architecture.heads * architecture.head_dim);
  return 4.0 * tokens / seqlen * pairs * width;
}

int64_t largest_weight(const Architecture& architecture, Half half) {
  int64_t largest = 0;
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half) largest = std::max(largest, linear.out * linear.in);
  }
  return largest;
}

TouchedElements touched_activations(const Architecture& architecture, Half half) {
  const auto hidden = static_cast<double>(architecture.hidden);
  // Normalise and apply the gain: read and write twice; add the residual: read twice, write once.
  // Back: the same the other way, and the way around the residual.
  TouchedElements touched{7 * hidden, 9 * hidden};
  if (half == Half::kAttention) {
    const auto q = static_cast<double>(architecture.heads * architecture.head_dim);
    const auto k = static_cast<double>(architecture.kv_heads * architecture.head_dim);
    const auto normed = static_cast<double>(normed_head_channels(architecture, half));
    // Norms of heads as above; rotate q and k, bring the heads side by side: read and write.
    touched.forward += 4 * normed + 2 * (q + k) + 2 * q;
    touched.backward += 5 * normed + 2 * (q + k) + 2 * q + 2 * k;
  } else {
    const auto ffn = static_cast<double>(architecture.ffn);
    // f(gate) ∘ up: two in, one out; back: three in, two out. f(up): one less of each.
    const bool is_gated = architecture.mlp_kind == MlpKind::kGated;
    const bool has_experts = architecture.has_experts(half);
    const double mlps = has_experts ? static_cast<double>(architecture.experts.per_token) : 1;
    touched.forward += mlps * (is_gated ? 3 : 2) * ffn;
    touched.backward += mlps * (is_gated ? 5 : 3) * ffn;
    // Of every expert: its rows of x̂ and gain ∘ x̂ are read and written, its output weighted and
    // added; back: the weighted output's way, and that to the rows.
    if (has_experts) touched.forward += mlps * (4 + 2 + 3) * hidden;
    if (has_experts) touched.backward += mlps * (2 + 4 + 3) * hidden;
  }
  return touched;
}

double kept_bytes(const Architecture& architecture, Half half, const BatchShape& batch) {
  const double tokens = batch.sequences * static_cast<double>(batch.seqlen);
  const double attention =
      half == Half::kAttention ? kept_by_attention(architecture, batch) : double{0};
  return batch.element *
         (tokens * static_cast<double>(kept_a_token(architecture, half)) + attention);
}

double passing_bytes(const Architecture& architecture, Half half, const BatchShape& batch) {
  const double tokens = batch.sequences * static_cast<double>(batch.seqlen);
  const auto hidden = static_cast<double>(architecture.hidden);
  if (half == Half::kMlp) {
    // Gradients of what units are made of, and of the units that are gone by then.
    const double gates = architecture.mlp_kind == MlpKind::kGated ? 2 : 1;
    const double units = gates * static_cast<double>(architecture.ffn);
    const auto experts = static_cast<double>(architecture.experts.per_token);
    // Of one expert at a time; what goes back to the rows of all.
    const double share = architecture.has_experts(half)
                             ? experts / static_cast<double>(architecture.experts.count)
                             : 1;
    return batch.element * tokens * std::max(share * units + 2 * experts * hidden, hidden);
  }
  // Gradients of the heads side by side; of queries, keys and values; and the way back through
  // their rotation. Forward it is gain ∘ x̂, and queries and keys before they were turned.
  const auto q = static_cast<double>(architecture.heads * architecture.head_dim);
  const auto k = static_cast<double>(architecture.kv_heads * architecture.head_dim);
  const bool has_groups = architecture.heads != architecture.kv_heads;
  const double spread = !batch.is_host && has_groups ? 2 * (q - k) : 0;
  return std::max(
      batch.element * tokens * (3 * q + 3 * k + spread),
      batch.element * tokens * (q + k + hidden) + mask_making_bytes(architecture, batch));
}

}  // namespace coppice
