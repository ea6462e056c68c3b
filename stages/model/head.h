// The language-model head in vocabulary chunks: next-token losses with a running log-sum-exp.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "stages/model/block_weights.h"

namespace coppice {

/// What lies between the last block and the head. Undefined: there is none.
struct FinalWeights {
  Norm norm;
  at::Tensor project;  // [embedding_width, hidden]
};

/// Gathers it by asking `tensor` for every name of final_tensors().
FinalWeights gather_final(const Architecture& architecture,
                          const std::function<at::Tensor(const std::string& name)>& tensor);

/// x [tokens, hidden] → what the head reads, [tokens, embedding_width]: project norm(x), as far as
/// the architecture has them.
at::Tensor head_input(const Architecture& architecture, const FinalWeights& weights,
                      const at::Tensor& x);

/// x [n, embedding_width] · head_rows [rows, embedding_width]ᵀ, rounded to the dtype of `x`, then
/// fp32.
at::Tensor head_logits(const at::Tensor& x, const at::Tensor& head_rows);

/// Per predicted token: running maximum and sum of exponentials, and the logit of the target.
/// All fp32 [tokens] on the device of `targets`; 12 bytes a token.
class RunningLogSumExp {
 public:
  /// targets [tokens] int64: the token each position predicts.
  explicit RunningLogSumExp(at::Tensor targets);

  /// Adds logits [n, rows] fp32 of vocabulary rows [first_row, first_row + rows) for positions
  /// [first_token, first_token + n). Overwrites them. Chunks may come in any order, each once.
  void add(int64_t first_token, at::Tensor logits, int64_t first_row);

  /// log Σ exp(logit) per position, fp32 [tokens]; valid once every chunk was added.
  at::Tensor log_sum_exp() const;

  /// −log p(target) per position, fp32 [tokens]; valid once every chunk was added.
  at::Tensor nll() const;

 private:
  at::Tensor targets_;
  at::Tensor max_;
  at::Tensor sum_;
  at::Tensor target_logit_;
};

}  // namespace coppice
