// Matrix windows: every pruned linear of a half-block fitted and trained on its own.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "stages/ops/masked_adamw.h"
#include "stages/reconstruct/keep_best.h"
#include "stages/span_job.h"
#include "stages/stage.h"

namespace coppice {

/// The window of a linear is y = W x + b alone: no activation, no residual stream. x is what the
/// linear reads where the *dense* half runs on what enters it, so that linears do not depend on
/// each other and share the forward passes that make x. The target is the dense linear on the same
/// x, or under mixed propagation on the dense model's own (not for experts: tokens are routed
/// otherwise there). Everything else as in WindowTrainer. One thread.
class MatrixTrainer {
 public:
  /// `name` seeds the shuffle. Throws std::invalid_argument if there are fewer than two calibration
  /// windows.
  MatrixTrainer(SpanJob& span, int half, Variant& variant, const ReconstructOptions& options,
                std::string name);

  /// Leaves the best values in the variant's adapted tensors and names them as trained. One report
  /// for each linear under a mask.
  std::vector<WindowReport> run();

 private:
  /// One linear at work.
  struct Matrix {
    const LinearSpec& spec;
    std::string name;                   // full name of the module
    Linear dense;                       // stored dtype
    Linear target;                      // compute dtype
    AdamWState weight, bias;            // bias: undefined where there is none or it is not trained
    std::vector<at::Tensor> best = {};  // weight, bias as they will be written; empty: none so far
    bool is_judged = false;             // it has a held-out loss; else it stays as it was pruned
    bool is_training = false;
    WindowReport report = {};
  };
  /// What a linear reads, and what its target is made of.
  struct Inputs {
    at::Tensor x, dense;
  };

  /// A mean loss.
  struct Judgement {
    double loss = 0;
    bool is_seen = true;  // false: an expert that no token was routed to
  };

  Matrix start(const LinearSpec& spec) const;
  void restart(Matrix& matrix) const;
  std::vector<at::Tensor> rounded(const Matrix& matrix) const;
  Linear used(const Matrix& matrix, const std::vector<at::Tensor>& values) const;
  void keep(Matrix& matrix, const std::vector<at::Tensor>& values, const std::string& solver);

  std::map<std::string, Inputs> capture(std::span<const int> windows);
  /// Mean loss of each matrix over windows, with such values.
  std::vector<Judgement> evaluate(const std::vector<std::vector<at::Tensor>>& values,
                                  std::span<const int> windows);
  void fit(double ridge);
  void train();
  void attempt();
  void run_epoch(int epoch, int64_t num_steps, int64_t& step, std::vector<at::Tensor>& sums);
  at::Tensor step(Matrix& matrix, const Inputs& inputs, int64_t step, int64_t num_steps);

  SpanJob& span_;
  Variant& variant_;
  int half_;
  ReconstructOptions options_;
  std::string name_;
  std::unique_ptr<ActivationSource> inputs_;
  std::unique_ptr<ActivationSource> dense_inputs_;  // mixed propagation only
  BlockWeights forward_;                            // the dense half in the compute dtype
  HoldOut split_;
  std::vector<Matrix> matrices_;
};

}  // namespace coppice
