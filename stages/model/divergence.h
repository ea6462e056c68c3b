// How far a model's next-token distribution is from a reference's, vocabulary chunk by chunk.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// Per predicted token, fp32 [tokens] on one device: the running mean of (reference logit − model
/// logit) under the reference's distribution, and both models' best row so far; 32 bytes a token.
/// One thread.
class RunningDivergence {
 public:
  RunningDivergence(int64_t tokens, at::Device device);

  /// Adds logits [n, rows] fp32 of vocabulary rows [first_row, first_row + rows) for positions
  /// [first_token, first_token + n). Chunks may come in any order, each once; of equal logits the
  /// one that came first is the best.
  void add(int64_t first_token, const at::Tensor& reference, const at::Tensor& model,
           int64_t first_row);

  /// KL(reference ‖ model) per position in nats, fp32 [tokens], from the log-sum-exp of either over
  /// the whole vocabulary: Σ p (r − m) − lse(r) + lse(m). Valid once every chunk was added.
  at::Tensor kl(const at::Tensor& reference_log_sum_exp, const at::Tensor& model_log_sum_exp) const;

  /// Whether both put the same row first, bool [tokens].
  at::Tensor agrees() const;

 private:
  /// Maximum and its row.
  struct Best {
    at::Tensor logit;
    at::Tensor row;  // int64
    void add(int64_t first_token, const at::Tensor& logits, int64_t first_row);
  };
  Best reference_;
  Best model_;
  at::Tensor sum_;       // Σ exp(r − max r)
  at::Tensor weighted_;  // Σ exp(r − max r) (r − m)
};

}  // namespace coppice
