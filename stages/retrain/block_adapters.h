// What is trained of one block: an adapter beside every linear's weight, biases and norms.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "stages/model/architecture.h"
#include "stages/ops/masked_adamw.h"
#include "stages/retrain/resident_model.h"  // NamedTensors
#include "stages/retrain_options.h"

namespace coppice {

/// Names are those of block_tensors(); parameters of an adapter add ".lora_A" and ".lora_B" to
/// their linear's. A router stays as it is. One thread.
class BlockAdapters {
 public:
  /// `pruned` has every tensor of the block as it is stored; shared, never written.
  BlockAdapters(const Architecture& architecture, int block, NamedTensors pruned,
                const RetrainOptions& options);

  /// The block as training computes with it: effective weights, biases and norms in `compute`, new
  /// leaves that collect gradients where something is trained.
  NamedTensors leaves(at::ScalarType compute) const;

  /// Updates every parameter by the gradients that those leaves have collected.
  void step(const NamedTensors& leaves, const AdamWStep& step);

  /// Parameters and their moments, by name: what a run that continues must have.
  const std::map<std::string, AdamWState>& parameters() const { return parameters_; }
  std::map<std::string, AdamWState>& parameters() { return parameters_; }

  /// Copies of the parameters' values.
  NamedTensors values() const;

  /// The block as it is written when the parameters have these values: merged under the mask, in
  /// the dtypes it was stored in. What is not trained is shared with `pruned`.
  NamedTensors merged(const NamedTensors& values) const;

  const NamedTensors& pruned() const { return pruned_; }

 private:
  NamedTensors pruned_;
  std::map<std::string, std::string> linear_of_weight_;  // tensor name → the linear's
  std::map<std::string, AdamWState> parameters_;
  double scale_;
};

}  // namespace coppice
