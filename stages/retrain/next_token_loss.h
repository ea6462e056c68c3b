// The last norm, the head and the cross entropy of the next token, some tokens at a time.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stages/model/architecture.h"
#include "stages/model/head.h"

namespace coppice {

/// 32 MiB of logits in fp32, held three times.
constexpr int64_t kLogitsAtOnce = int64_t{8} << 20;

/// What turns last hidden states into logits; converted to their dtype where it is used.
struct OutputHead {
  const Architecture& architecture;
  FinalWeights final;
  at::Tensor rows;                         // [vocab, embedding_width]
  int64_t logits_at_once = kLogitsAtOnce;  // 32 MiB in fp32, three times; at least one token's
};

/// Σ −log p(next token) over the tokens that have a next one: a scalar fp64 tensor.
/// hidden  [sequences · length, hidden]   sequences end to end, in the compute dtype
/// ids     [sequences, length] int64      length ≥ 2
/// `gradient`, if not null, becomes the derivative of the *mean* with respect to `hidden` (0 at
/// each sequence's last token). Logits are rounded as head_logits has them; no graph.
at::Tensor next_token_loss(const OutputHead& head, const at::Tensor& hidden, const at::Tensor& ids,
                           at::Tensor* gradient = nullptr);

/// Bytes held at work by logits and by the head in the compute dtype, beside arguments and result.
/// length   of a sequence: logits are never of more than one
double next_token_loss_bytes(int64_t length, int64_t vocab, int64_t hidden, int64_t element_bytes);

}  // namespace coppice
