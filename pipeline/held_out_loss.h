// How well several models predict the held-out windows, from their last hidden states.
#pragma once

#include <vector>

#include "pipeline/token_windows.h"
#include "stages/model/head.h"

namespace coppice {

/// Adds up a head that comes in chunks of vocabulary rows. On the device's thread; holds 12 bytes a
/// token and model.
class HeldOutLoss {
 public:
  /// The windows from `first_window` on, of so many models of one vocabulary.
  HeldOutLoss(const TokenWindows& tokens, int first_window, size_t num_models, at::Device device);

  /// head_rows: rows [first_row, …) of the head in the compute dtype, [rows, embedding_width];
  /// hidden: by model, [windows · seqlen, hidden] of any float dtype. Each chunk once.
  void add(const Architecture& architecture, const at::Tensor& head_rows,
           const FinalWeights& before, int64_t first_row, const std::vector<at::Tensor>& hidden);

  /// Mean −log p of the next token in nats, by model; valid once every chunk was added. NaN or
  /// infinite of a model that overflowed.
  std::vector<double> losses() const;

 private:
  int64_t seqlen_;
  std::vector<RunningLogSumExp> sums_;
};

/// Σ ‖h − dense‖² / Σ ‖dense‖² of last hidden states, for a model without a head.
double hidden_error(const at::Tensor& hidden, const at::Tensor& dense);

}  // namespace coppice
