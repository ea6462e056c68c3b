// What a model looks like, as plain data: read from configs/architectures and a checkpoint's
// config.json.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace coppice {

enum class Half { kAttention, kMlp };  // half-block number = 2 · block + (kMlp ? 1 : 0)

inline Half half_of(int half_number) {
  return half_number % 2 == 0 ? Half::kAttention : Half::kMlp;
}

enum class NormKind { kRms, kLayer };   // kLayer: norms have biases
enum class MlpKind { kGated, kPlain };  // down(f(gate) ∘ up), down(f(up))
enum class AttentionMask { kCausal, kBidirectional };
enum class Activation { kSilu, kGelu, kGeluTanh, kRelu };
enum class RopeKind { kNone, kDefault, kLinear, kDynamic, kLlama3, kYarn };

/// Each kind reads theta and, but for kNone and kDefault, factor.
struct Rope {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;  // kLlama3, as the next
  double high_freq_factor = 4.0;
  int64_t original_max_position = 8192;  // kLlama3, kYarn; kDynamic: beyond it theta grows
  double attention_factor = 1.0;         // kYarn, as the rest: of cosines and sines
  double beta_fast = 32.0;               // turns within original_max_position: more are kept,
  double beta_slow = 1.0;                // fewer are divided by the factor, those between blended
  bool truncate = true;                  // where blending begins and ends, to whole frequencies
};

/// One linear of a block. `role` is what the forward calls it (q k v o, gate up down, or up down
/// alone; "gate.3" of expert 3); linears with the same `input` read the same tensor and share one
/// statistic.
struct LinearSpec {
  std::string role;
  std::string name;  // within the block: "self_attn.q_proj"
  std::string input;
  Half half = Half::kAttention;
  int64_t out = 0;
  int64_t in = 0;
  bool has_bias = false;
  int expert = -1;  // of a mixture: which one; it sees the tokens that are routed to it
  /// The key of config.json that says whether there are biases; empty: that is no choice.
  std::string bias_key = {};
  bool bias_is_added = false;  // it is in no checkpoint yet: zeros

  /// The role without the expert's number.
  std::string part() const;
};

/// A mixture of experts instead of one MLP. A router, a linear without bias that is never pruned
/// nor trained, gives every expert a probability (softmax in fp32); a token goes through the most
/// probable ones, whose outputs are summed by these weights.
struct ExpertSpec {
  int64_t count = 0;  // 0: one MLP, nothing below is read
  int64_t per_token = 0;
  std::string router;          // within the block: "mlp.gate", [count, hidden]
  bool sum_to_one = false;     // the weights of a token are divided by their sum
  bool round_weights = false;  // to the dtype of hidden states, before they multiply an output
};

/// One normalisation of a block: a gain [size], and a bias [size] where the kind has one. A half is
/// normalised before its linears, or after its residual sum; by its role. "q_norm" and "k_norm" are
/// over head_dim, before positions.
struct NormSpec {
  std::string role;  // "before_attention", "before_mlp", "after_attention", "after_mlp", "q_norm" …
  std::string name;  // within the block: "input_layernorm"
  Half half = Half::kAttention;
  int64_t size = 0;
};

/// Weights that are stored as FP8 have a scale for every block of so many rows and columns (the
/// last ones may be smaller), in a tensor beside them. 0: none are stored so.
struct ScaleBlock {
  int64_t rows = 0;
  int64_t columns = 0;
  bool is_there() const { return rows > 0; }
};

/// What structured pruning removes together: rows of the producers, columns of the consumer. By
/// LinearSpec::part(): every expert has such units of its own.
struct UnitSpec {
  std::vector<std::string> producers;
  std::vector<std::string> shared;
  std::string consumer;
  bool divides_hidden = false;  // the class wants a number of them that divides the hidden size
};

/// A family's description with one checkpoint's numbers filled in.
struct Architecture {
  std::string family;  // "llama"
  std::string
      dtype;  // of the block's weights and of hidden states, as safetensors writes it: "BF16"
  ScaleBlock scale_block;  // some weights are stored as FP8 instead, and widened to `dtype`
  int64_t num_blocks = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab = 0;
  int64_t max_positions = 0;
  int64_t embedding_width = 0;  // of the embedding's rows and the head's; 0: hidden
  NormKind norm_kind = NormKind::kRms;
  double norm_epsilon = 1e-5;
  MlpKind mlp_kind = MlpKind::kGated;  // of an expert, where there are some
  ExpertSpec experts;
  Activation activation = Activation::kSilu;
  AttentionMask mask = AttentionMask::kCausal;
  /// By block: how many tokens one attends to, itself included; 0: all before it. Empty: all 0.
  std::vector<int64_t> attention_windows;
  Rope rope;
  std::string block_prefix;  // "model.layers.{block}."
  /// Half by half, each in the order of the forward: first those that read the half's input, last
  /// the one that writes to the residual stream; experts one after the other.
  std::vector<LinearSpec> linears;
  std::vector<NormSpec> norms;
  std::map<std::string, UnitSpec> units;
  // Outside the blocks, by full name; empty: there is none. Norms without ".weight" and ".bias".
  std::string embedding;       // [vocab, embedding_width]
  std::string project_in;      // [hidden, embedding_width]
  std::string token_types;     // [num_token_types, hidden]; every token is of the first type
  std::string positions;       // [first_position_row + max_positions, hidden]
  std::string embedding_norm;  // [hidden]
  std::string final_norm;      // [hidden]
  std::string project_out;     // [embedding_width, hidden]
  std::string head;            // [vocab, embedding_width]; the embedding's name when tied
  bool tied = false;
  int64_t num_token_types = 0;
  int64_t first_position_row = 0;  // of `positions`: that of the first token
  std::vector<int64_t> eos_token_ids;
  /// Keys of config.json that state sizes, by their name here: "blocks", "ffn", "heads",
  /// "kv_heads", "head_dim"; those that are stated, and do not follow from others.
  std::map<std::string, std::string> size_keys;

  const LinearSpec& linear(const std::string& role) const;  // throws std::out_of_range
  /// Of expert 0 and of the last one, where there are some. Throw std::out_of_range.
  const LinearSpec& first_linear(Half half) const;
  const LinearSpec& last_linear(Half half) const;
  int64_t attention_window(int block) const;
  bool has_experts(Half half) const { return half == Half::kMlp && experts.count > 0; }
  /// Of all tokens, those that the linear sees: a mean over the experts, exact for their sum.
  double share_of_tokens(const LinearSpec& linear) const;
  int64_t width_of_embedding() const { return embedding_width == 0 ? hidden : embedding_width; }
};

struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
  bool is_added = false;  // it is in no checkpoint yet: zeros
};

/// "model.layers.7.self_attn.q_proj" for name "self_attn.q_proj".
std::string in_block(const Architecture& architecture, int block, const std::string& name);

/// The scales of an FP8 weight: their tensor's name, and its shape for a weight of that shape.
std::string scales_name(const std::string& weight);
std::vector<int64_t> scales_shape(const ScaleBlock& block, const std::vector<int64_t>& weight);

/// The full name of the router's weight, where there are experts.
std::string router_tensor(const Architecture& architecture, int block);

/// "gate.3": what an expert's linear is called.
std::string role_of_expert(const std::string& part, int64_t expert);

/// Every tensor of block `block` (weights, biases, router, norms) / outside the blocks, with its
/// shape.
std::vector<NamedShape> block_tensors(const Architecture& architecture, int block);
std::vector<NamedShape> outer_tensors(const Architecture& architecture);

/// Gives every linear without a bias one of zeros, where its class has a place for it; returns the
/// keys of config.json that have to say so from now on.
std::vector<std::string> add_biases(Architecture& architecture);

/// Elements of the tensor with that full name, if it is such a bias.
std::optional<int64_t> added_bias(const Architecture& architecture, const std::string& name);

/// Of the outer ones: what turns rows of the embedding into the first hidden states, and the last
/// hidden states into what the head reads.
std::vector<NamedShape> stem_tensors(const Architecture& architecture);
std::vector<NamedShape> final_tensors(const Architecture& architecture);

}  // namespace coppice
