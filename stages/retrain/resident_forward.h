// A whole model that lies in memory, from tokens to its loss and back, one block at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "stages/model/rotary.h"
#include "stages/model/stem.h"
#include "stages/retrain/next_token_loss.h"
#include "stages/retrain/resident_model.h"

namespace coppice {

/// Works on sequences of one length; ids and hidden states are on the model's device, hidden states
/// in its compute dtype, sequences end to end. Holds the weights outside the blocks as they are
/// computed with, the embedding and the head as they are stored. One thread, the device's.
class ResidentForward {
 public:
  /// The model outlives this, and must predict a next token. `length` in tokens.
  ResidentForward(const ResidentModel& model, int64_t length);

  /// ids [sequences, length] int64 → what enters the first block, [sequences · length, hidden].
  at::Tensor embedded(const at::Tensor& ids) const;

  /// hidden [sequences · length, hidden] → the same behind that block, whose tensors are `tensors`.
  /// With a graph where they, or `hidden`, require gradients.
  at::Tensor block_output(int block, const NamedTensors& tensors, const at::Tensor& hidden,
                          int64_t sequences) const;

  /// See next_token_loss(): of what leaves the last block.
  at::Tensor loss(const at::Tensor& hidden, const at::Tensor& ids) const {
    return next_token_loss(head_, hidden, ids);
  }

  /// The tensors of a block to compute with, in the compute dtype. Asked twice a block; the same
  /// values both times.
  using Leaves = std::function<NamedTensors(int block)>;
  /// Given the leaves of a block once those that require gradients have them; last block first. A
  /// leaf that took no part in the loss (an expert that no token went through) has none.
  using Take = std::function<void(int block, const NamedTensors& leaves)>;

  /// The mean next-token loss of ids [sequences, length], in nats, and its derivatives. Every block
  /// runs twice, once forward and once more in the backward sweep, so that beside what enters each
  /// block only one block's activations are held. Nothing goes back from a loss that is not finite.
  /// Some leaf of the first block must require a gradient.
  double loss_and_gradients(const at::Tensor& ids, const Leaves& leaves, const Take& take) const;

 private:
  const ResidentModel& model_;
  int64_t length_;
  RotaryTable rotary_;
  StemWeights stem_;
  OutputHead head_;
};

}  // namespace coppice
