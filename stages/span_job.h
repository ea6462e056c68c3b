// What travels through the graph to the stages: one span of blocks, its weights, its boundaries.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "stages/activations.h"
#include "stages/model/architecture.h"
#include "stages/model/block_weights.h"
#include "stages/model/rotary.h"
#include "stages/prune_options.h"
#include "stages/reconstruct_options.h"

namespace coppice {

/// Half-blocks [first, last): 2b is the attention half of block b, 2b+1 its MLP half.
struct HalfRange {
  int first = 0;
  int last = 0;
  int first_block() const { return first / 2; }
  int last_block() const { return (last + 1) / 2; }  // one past the last
  bool operator==(const HalfRange&) const = default;
};

enum class Stream { kDense, kPropagated };

/// The hidden states that enter half-block `half` in one of the streams.
struct Boundary {
  Stream stream = Stream::kDense;
  int half = 0;
  bool is_inside_a_block() const { return half % 2 == 1; }
  auto operator<=>(const Boundary&) const = default;
};
std::string to_string(const Boundary& boundary);  // "dense.12"

/// What enters `half` in a stream. Both streams start from the same embeddings, kept once.
inline Boundary entering(Stream stream, int half) {
  return {half == 0 ? Stream::kDense : stream, half};
}

/// Answers for the activations of a span: from the cache, or recomputed.
class Boundaries {
 public:
  virtual ~Boundaries() = default;
  virtual std::unique_ptr<ActivationSource> source(Boundary boundary) = 0;
  /// Null where nobody will ask for the boundary again.
  virtual std::unique_ptr<ActivationSink> sink(Boundary boundary) = 0;
};

/// Of one tensor that linears read, over all calibration tokens; of an expert's over those that
/// were routed to it.
struct InputStatistics {
  at::Tensor sum_of_squares;  // [in] fp64
  int64_t tokens = 0;         // 0: an expert that no token was routed to; the rest is zeros
  /// [in, in] fp32: XᵀX over the windows that are not held out. Undefined where nobody asked.
  at::Tensor gram = {};
  at::Tensor sum = {};             // [in] fp64: over all tokens. Undefined where nobody asked
  at::Tensor gram_sum = {};        // [in] fp64: the same over those of `gram`
  int64_t gram_tokens = 0;         // how many they are
  at::Tensor column_norm() const;  // [in] fp32: √sum_of_squares
  at::Tensor variance() const;     // [in] fp32: of every column; wants `sum`
};

/// How little a block's layers change: mean over all calibration tokens of the cosine between what
/// enters and what leaves. Source: Men et al., "ShortGPT", arXiv:2403.03853, eq. 1.
struct LayerSimilarities {
  double attention = 0, mlp = 0, block = 0;
};

/// Why nothing could be learned from the calibration set about an expert.
inline constexpr char kNoTokenRouted[] = "no calibration token was routed to it";

/// What one window's reconstruction did, for the report.
struct WindowReport {
  HalfRange halves;
  std::string name;  // "attention", "mlp", "block", "2 blocks", or of a matrix "self_attn.q_proj"
  double loss_pruned = 0, loss_reconstructed = 0;  // on the first training windows, as many
  double validation_pruned = 0, validation_reconstructed = 0;  // as are held out
  double validation_fitted = 0;  // by least squares; 0 where none was asked for
  // Whose weights were the best: pruned, least_squares, bias, liar, adamw.
  std::string kept = "pruned";
  double ridge = 0;  // of the best fit; infinite: nothing but the bias was changed
  int64_t steps = 0;
  double lr = 0;
  int retries = 0;
  int micro_batch = 0;  // sequences at once, where a GPU's memory did not do for a batch; else 0
  std::string fallback = {};  // empty, or why the pruned weights stayed
  double seconds = 0;
};

struct LinearReport {
  std::string name;  // full tensor name
  std::string method;
  std::string pattern;
  double sparsity = 0;        // zeros / weights, counted
  int64_t weights = 0;        // elements of the tensor
  std::string fallback = {};  // empty, or why the method is not the one that was asked for
};

/// One recipe's results on the span. Tensors by full name, in the model's dtype.
struct Variant {
  PruneOptions prune;
  ReconstructOptions reconstruct;
  std::map<std::string, at::Tensor> masks;    // bool [out, in]: true is kept; of the window at work
  std::map<std::string, at::Tensor> adapted;  // every tensor that was pruned or trained
  /// Masks that were given, by the name of the weight (PruneMethod::kGiven): packed bits [out,
  /// ⌈in / 8⌉] uint8, or a tensor of the weight's shape whose zeros are pruned. A weight without
  /// one stays dense.
  std::map<std::string, at::Tensor> given_masks;
  /// Scores of units that were made before the run (PruneMethod::kSnip): [units] fp32 on the CPU,
  /// by the consumer's full name without ".weight".
  std::map<std::string, at::Tensor> unit_scores;
  /// Masks to be written, packed, by the name of the weight (PruneOptions::export_masks).
  std::map<std::string, at::Tensor> bitmasks;
  /// Where units were removed: which stay, [units] bool on the CPU, by the consumer's full name
  /// without ".weight".
  std::map<std::string, at::Tensor> kept_units;
  /// Memory that adapted tensors shall lie in, where the owner of the job has some: the shard that
  /// will be written. May be empty.
  std::map<std::string, at::Tensor> places;
  /// The held-out windows as they leave the adapted prefix, end to end, hidden states rounded to
  /// the model's dtype, where somebody judges the whole model by them (HeldOutForward). May be
  /// undefined.
  MicroBatch held_out;
  std::vector<WindowReport> windows;
  std::vector<LinearReport> linears;
  std::vector<std::string> trained;  // names of tensors whose kept values may have changed

  /// The tensor `adapted[name]` to write to: the one that is there, its place, or a new one shaped
  /// like `dense`. Its values are unspecified unless it was there.
  at::Tensor& room_for(const std::string& name, const at::Tensor& dense);
  /// Adds a name to `trained`, once.
  void mark_trained(const std::string& name);
};

/// What a window keeps of its activations until their gradients are made: of all its halves, or of
/// one, while those of the others are computed again from what enters them. The same bits.
enum class KeptActivations { kAll, kOfOneHalf };

/// Whole blocks: one, or those of a window. `dense` is immutable until the span retires.
struct SpanJob {
  HalfRange halves;
  const Architecture& architecture;
  std::vector<BlockWeights> dense;  // by block; stored dtype, views of the slot
  at::ScalarType compute;           // of products and activations
  const RotaryTable& rotary;        // in the compute dtype
  Boundaries& boundaries;
  std::map<std::string, InputStatistics> statistics;  // by in_block(block, LinearSpec::input)
  std::map<int, LayerSimilarities> similarities;      // by block, where somebody asked
  std::vector<Variant> variants = {};
  KeptActivations kept_activations = KeptActivations::kAll;

  /// The dense block that a half-block belongs to.
  const BlockWeights& dense_at(int half) const {
    return dense.at(static_cast<size_t>(half / 2 - halves.first_block()));
  }
};

/// A window of a span, and the variant it is worked on for (null for the dense forward).
struct WindowJob {
  SpanJob& span;
  HalfRange halves;
  Variant* variant = nullptr;
};

}  // namespace coppice
