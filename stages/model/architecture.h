// What a model looks like, as plain data: read from configs/architectures and a checkpoint's
// config.json.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace coppice {

enum class Half { kAttention, kMlp };  // half-block number = 2 · block + (kMlp ? 1 : 0)
enum class Activation { kSilu, kGelu, kGeluTanh, kRelu };
enum class RopeKind { kDefault, kLlama3 };

struct Rope {
  RopeKind kind = RopeKind::kDefault;
  double theta = 10000.0;
  double factor = 1.0;  // the four below: kLlama3 only
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  int64_t original_max_position = 8192;
};

/// One linear of a block. `role` is what the forward calls it (q k v o gate up down); linears with
/// the same `input` read the same tensor and share one statistic.
struct LinearSpec {
  std::string role;
  std::string name;  // within the block: "self_attn.q_proj"
  std::string input;
  Half half = Half::kAttention;
  int64_t out = 0;
  int64_t in = 0;
  bool has_bias = false;
};

/// One normalisation's gain, [size].
struct NormSpec {
  std::string role;  // "before_attention", "before_mlp"
  std::string name;  // within the block: "input_layernorm"
  Half half = Half::kAttention;
  int64_t size = 0;
};

/// What structured pruning removes together: rows of the producers, columns of the consumer.
struct UnitSpec {
  std::vector<std::string> producers;
  std::vector<std::string> shared;
  std::string consumer;
};

/// A family's description with one checkpoint's numbers filled in.
struct Architecture {
  std::string family;  // "llama"
  std::string
      dtype;  // of the block's weights and of hidden states, as safetensors writes it: "BF16"
  int64_t num_blocks = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab = 0;
  int64_t max_positions = 0;
  double norm_epsilon = 1e-5;
  Activation activation = Activation::kSilu;
  Rope rope;
  std::string block_prefix;  // "model.layers.{block}."
  std::vector<LinearSpec> linears;
  std::vector<NormSpec> norms;
  std::map<std::string, UnitSpec> units;
  std::string embedding;  // tensor names outside the blocks
  std::string final_norm;
  std::string head;  // the embedding's name when tied
  bool tied = false;
  std::vector<int64_t> eos_token_ids;

  const LinearSpec& linear(const std::string& role) const;  // throws std::out_of_range
};

struct NamedShape {
  std::string name;
  std::vector<int64_t> shape;
};

/// "model.layers.7.self_attn.q_proj" for name "self_attn.q_proj".
std::string in_block(const Architecture& architecture, int block, const std::string& name);

/// Every tensor of block `block` (weights, biases, norm gains) / outside the blocks, with its
/// shape.
std::vector<NamedShape> block_tensors(const Architecture& architecture, int block);
std::vector<NamedShape> outer_tensors(const Architecture& architecture);

}  // namespace coppice
