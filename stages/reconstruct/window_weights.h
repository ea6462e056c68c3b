// The tensors of a window under training: fp32 masters, and the leaves that products read.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "stages/model/block_weights.h"
#include "stages/ops/masked_adamw.h"
#include "stages/reconstruct/window_loss.h"  // WindowBlocks
#include "stages/reconstruct_options.h"
#include "stages/span_job.h"

namespace coppice {

/// Starts from the variant's adapted tensors, and the dense ones where it has none. Trained are the
/// window's weights (kept ones, where there is a mask), and biases and norms as the options say;
/// the biases of consumers of units also where these are folded into them, and nowhere else.
/// A router is there and never trained. Owns masters, moments and leaves; in fp32 compute a leaf is
/// its master, not a copy. The job and the variant must outlive this. One thread.
class WindowWeights {
 public:
  WindowWeights(const SpanJob& span, HalfRange halves, const Variant& variant,
                const ReconstructOptions& options);
  WindowWeights(const WindowWeights&) = delete;
  WindowWeights& operator=(const WindowWeights&) = delete;

  /// Full names of what is trained.
  const std::vector<std::string>& names() const { return names_; }

  /// The window's tensors in the compute dtype; the trained ones are leaves that collect gradients.
  const WindowBlocks& leaves() const { return leaves_; }

  /// Of all that have one.
  void scale_gradients(double factor);

  /// Updates every trained tensor by its gradient, and releases the gradients. Where AdamW trains.
  /// What has no gradient, an expert without tokens, stays as it is.
  void step(const AdamWStep& step);

  /// Back to what the variant holds now: values, moments, no gradients.
  void restart();

  /// The trained tensors as they would be written, in the order of names(). New tensors.
  std::vector<at::Tensor> values() const;

  /// What least squares makes of the dense weights, as it would be written; undefined for all
  /// others, and for experts without tokens. From the span's statistics. Every weight under a mask
  /// is fitted to it; or, where units are folded (folds_units), the consumers of units and their
  /// biases.
  std::vector<at::Tensor> fitted(double ridge) const;

  /// The window with such values in the compute dtype (an undefined one: the leaf), for
  /// evaluation without a graph.
  WindowBlocks with(const std::vector<at::Tensor>& values) const;

 private:
  struct Trained {
    at::Tensor dense;  // stored dtype, owned by the job
    at::Tensor leaf;
    AdamWState state;
    int block;
    std::string role;
    enum class Kind { kWeight, kBias, kNormGain, kNormBias } kind;
    bool is_only_fitted = false;  // no step changes it
  };

  const InputStatistics& statistics_of(const Trained& trained) const;
  void fold(size_t weight, double ridge, std::vector<at::Tensor>& fitted) const;
  at::Tensor start_value(const std::string& name, const at::Tensor& dense) const;
  at::Tensor train(const std::string& name, const at::Tensor& dense, Trained::Kind kind, int block,
                   const std::string& role);
  void add_linear(int half, const LinearSpec& spec, const ReconstructOptions& options);
  void add_norm(int half, const NormSpec& spec, const ReconstructOptions& options);

  const SpanJob& span_;
  const Variant& variant_;
  bool trains_;  // else there are no moments
  bool folds_;
  std::vector<std::string> names_;
  std::vector<Trained> trained_;
  WindowBlocks leaves_;
};

}  // namespace coppice
