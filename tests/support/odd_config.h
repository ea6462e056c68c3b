// config.json of a small Llama for tests of what is read from it.
#pragma once

#include <nlohmann/json.hpp>

namespace coppice::testing {

/// Odd sizes, so that no two dimensions can be mistaken for each other.
inline nlohmann::json odd_config() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"num_hidden_layers", 2},
          {"hidden_size", 24},
          {"intermediate_size", 37},
          {"num_attention_heads", 6},
          {"num_key_value_heads", 2},
          {"vocab_size", 61},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 3e-6},
          {"hidden_act", "silu"},
          {"rope_theta", 500000.0},
          {"eos_token_id", 2}};
}

}  // namespace coppice::testing
