// Trains adapters through a whole model that lies in memory, and keeps the best it has seen.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "stages/retrain/block_adapters.h"
#include "stages/retrain/resident_forward.h"

namespace coppice {

/// How far training is, beside the tensors. Losses are means over predicted tokens, in nats;
/// `validations`, `loss_pruned` and `loss_retrained` are of weights as they would be written.
struct RetrainProgress {
  int64_t step = 0;                      // steps made
  int64_t tokens = 0;                    // trained on so far, each as often as it was
  double step_loss = 0;                  // of the latest step
  double epoch_loss = 0;                 // summed over the epoch at work
  std::vector<double> losses = {};       // of each whole epoch, mean over its steps
  std::vector<double> validations = {};  // held out: of the pruned model, then after each epoch
  int best = 0;                          // index into `validations`; 0: the pruned model
  std::optional<double> loss_pruned;     // of the first training windows
  std::optional<double> loss_retrained;
  std::string fallback = {};  // why training ended early
};

/// AdamW on the next token's cross entropy over calibration windows; held-out windows (the last
/// ones, num_held_out) judge the pruned model first and the result of every epoch. Every block runs
/// twice: once forward, once more in the backward sweep, so that one block's activations are held
/// at a time; its parameters are updated as soon as their gradients are known. A loss that is not
/// finite ends the training; of the pruned model it is a NumericalError. The result is a function
/// of model, tokens, options and arithmetic. One thread, the device's.
class Retrainer {
 public:
  /// Asked between batches of an evaluation.
  using Stop = std::function<bool()>;

  /// ids [windows, seqlen] int64 on the model's device. Throws std::invalid_argument for fewer than
  /// two windows. The model outlives this.
  Retrainer(const ResidentModel& model, at::Tensor ids, const RetrainOptions& options);
  Retrainer(const Retrainer&) = delete;
  Retrainer& operator=(const Retrainer&) = delete;

  int64_t num_steps() const { return steps_per_epoch_ * options_.training.epochs; }
  int num_training() const { return num_training_; }
  const RetrainProgress& progress() const { return progress_; }

  bool is_finished() const;
  /// Whether advance() will evaluate.
  bool is_evaluation_due() const;
  /// One step, or one evaluation; of an evaluation that `stop` ended nothing counts.
  void advance(const Stop& stop = {});

  /// Everything beside `progress` that a run that continues must have: parameters, moments, the
  /// best values. Shared with the trainer, not copied.
  NamedTensors state() const;
  /// Continues where another trainer of the same model, tokens and options was. Throws
  /// std::invalid_argument naming a tensor that is absent or of another shape.
  void restore(RetrainProgress progress, const NamedTensors& state);

  /// The tensors of a block as they are to be written: of the best epoch, or as they were pruned.
  NamedTensors result(int block) const;

 private:
  using Values = std::vector<NamedTensors>;  // by block, of BlockAdapters::values

  void train_step();
  void evaluate_epoch(const Stop& stop);
  void evaluate_result(const Stop& stop);
  at::Tensor ids_of(std::span<const int> windows) const;
  /// Mean loss with merged weights; nothing if `stop` ended it.
  std::optional<double> mean_loss(const Values& values, std::span<const int> windows,
                                  const Stop& stop) const;
  Values values() const;
  bool may_train() const { return progress_.fallback.empty() && progress_.step < num_steps(); }

  const ResidentModel& model_;
  at::Tensor ids_;
  RetrainOptions options_;
  ResidentForward forward_;
  std::vector<BlockAdapters> blocks_;
  int num_training_;
  int64_t steps_per_epoch_;
  std::vector<int> held_out_;
  std::vector<int> first_;  // training windows on which losses before and after are told
  RetrainProgress progress_;
  Values best_;  // empty: the pruned model
};

}  // namespace coppice
