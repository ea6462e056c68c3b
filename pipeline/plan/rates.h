// How fast this machine does each kind of work a plan counts.
#pragma once

#include <map>
#include <string>

namespace coppice {

/// Units a second; 0 where it was not measured.
struct Rates {
  double attention_product_flop = 0;  // products of an attention half at its own shapes
  double mlp_product_flop = 0;        // of an MLP half
  double attention_flop = 0;
  double touched_bytes = 0;     // memory passed by elementwise work, reads and writes together
  double selected_weights = 0;  // scores that become a mask
  double new_memory_bytes = 0;  // touched for the first time
  double encoded_bytes = 0;     // activations through the codec, one thread, counted undone
  double decoded_bytes = 0;
  double codec_ratio = 1;    // undone / stored
  double read_bytes = 0;     // from the checkpoint, through the engine
  double written_bytes = 0;  // to the scratch directory, synced

  std::map<std::string, double> corrections = {};  // of a stage's time by the rates, rehearsed
  double correction(const std::string& stage) const {
    const auto found = corrections.find(stage);
    return found == corrections.end() ? 1 : found->second;
  }

  bool known() const { return mlp_product_flop > 0; }
};

}  // namespace coppice
