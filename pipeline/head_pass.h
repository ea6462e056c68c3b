// The head of an evaluation: every chunk of vocabulary rows against every window's last hidden
// state, of one model or of two.
#pragma once

#include <memory>
#include <optional>

#include "pipeline/forward_pass.h"
#include "stages/model/divergence.h"
#include "stages/model/head.h"

namespace coppice {

/// A model beside its reference, over all predicted tokens.
struct Divergence {
  double reference_perplexity = 0;
  double kl_mean = 0;  // KL(reference ‖ model), nats a token
  double kl_p99 = 0;   // of its 99th percentile (nearest rank)
  double top1_agreement = 0;
};

struct Quality {
  double perplexity = 0;
  double nll = 0;      // mean over predicted tokens, nats
  int64_t tokens = 0;  // predicted
  std::optional<Divergence> against;
};

/// Used by the device's thread. Holds 12 bytes a token between chunks; with a reference 56 bytes,
/// one chunk of its head, and four [seqlen, rows of a chunk] fp32 at work instead of two.
class HeadPass {
 public:
  /// `reference` may be null. Passes outlive this and have run their bodies before add().
  HeadPass(const TokenWindows& tokens, const Device& device, ForwardPass& model,
           ForwardPass* reference);

  /// Keeps a chunk of the reference's head for the add() that follows, of the same rows.
  void hold_reference(const GraphSpan& span);

  /// Adds one kHead span of the model.
  void add(const GraphSpan& span);

  /// Each window predicts its own seqlen − 1 tokens; exp of the mean over all of them.
  Quality quality() const;

 private:
  /// What turns last hidden states into some of a model's logits.
  struct Chunk {
    at::Tensor rows;  // [rows, embedding_width]
    FinalWeights before;
  };
  /// In the stored dtype a chunk can be views of the slot, which the next span takes over.
  enum class Copy { kIfConverted, kAlways };
  Chunk chunk_of(const GraphSpan& span, const ForwardPass& pass, Copy copy) const;
  at::Tensor logits(const Chunk& chunk, ForwardPass& pass, int window) const;

  const TokenWindows& tokens_;
  const Device& device_;
  ForwardPass& model_;
  ForwardPass* reference_;
  Chunk held_;
  std::unique_ptr<RunningLogSumExp> sums_;
  std::unique_ptr<RunningLogSumExp> reference_sums_;  // these two: null without a reference
  std::unique_ptr<RunningDivergence> divergence_;
};

}  // namespace coppice
