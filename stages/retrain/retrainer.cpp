#include "stages/retrain/retrainer.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "stages/errors.h"                // NumericalError
#include "stages/reconstruct.h"           // learning_rate, num_held_out
#include "stages/reconstruct/schedule.h"  // epoch_order

namespace coppice {
namespace {

std::vector<int> index_range(int first, int count) {
  std::vector<int> indices(static_cast<size_t>(count));
  std::iota(indices.begin(), indices.end(), first);
  return indices;
}

int training_windows(const at::Tensor& ids, const RetrainOptions& options) {
  const int windows = static_cast<int>(ids.size(0));
  if (windows < 2) {
    throw std::invalid_argument(
        fmt::format("retraining needs at least 2 windows, one to train on and one held out, found "
                    "{}",
                    windows));
  }
  return windows - num_held_out(options.training.validation_fraction, windows);
}

void copy_into(at::Tensor& target, const NamedTensors& state, const std::string& name) {
  const auto found = state.find(name);
  if (found == state.end() || found->second.sizes() != target.sizes()) {
    throw std::invalid_argument(
        fmt::format("saved training state: {} is {}", name,
                    found == state.end() ? "not there" : "of another shape"));
  }
  target.copy_(found->second);
}

}  // namespace

Retrainer::Retrainer(const ResidentModel& model, at::Tensor ids, const RetrainOptions& options)
    : model_(model),
      ids_(std::move(ids)),
      options_(options),
      forward_(model, ids_.size(1)),
      num_training_(training_windows(ids_, options)) {
  const int batch = options.training.batch_size;
  steps_per_epoch_ = (num_training_ + batch - 1) / batch;
  const int num_held = static_cast<int>(ids_.size(0)) - num_training_;
  held_out_ = index_range(num_training_, num_held);
  first_ = index_range(0, std::min(num_held, num_training_));
  for (int block = 0; block < model.architecture.num_blocks; ++block) {
    NamedTensors pruned;
    for (const NamedShape& tensor : block_tensors(model.architecture, block)) {
      pruned[tensor.name] = model.tensors.at(tensor.name);
    }
    blocks_.emplace_back(model.architecture, block, std::move(pruned), options);
  }
}

at::Tensor Retrainer::ids_of(std::span<const int> windows) const {
  const std::vector<int64_t> rows(windows.begin(), windows.end());
  return ids_.index_select(0, at::tensor(rows, at::kLong).to(ids_.device()));
}

bool Retrainer::is_evaluation_due() const {
  const auto evaluated = static_cast<int64_t>(progress_.validations.size());
  return progress_.fallback.empty() && progress_.step >= evaluated * steps_per_epoch_;
}

bool Retrainer::is_finished() const {
  return !may_train() && !is_evaluation_due() && progress_.loss_retrained.has_value();
}

void Retrainer::advance(const Stop& stop) {
  if (is_evaluation_due()) {
    evaluate_epoch(stop);
  } else if (may_train()) {
    train_step();
  } else if (!progress_.loss_retrained) {
    evaluate_result(stop);
  }
}

void Retrainer::train_step() {
  const int64_t epoch = progress_.step / steps_per_epoch_;
  const int64_t first = progress_.step % steps_per_epoch_ * options_.training.batch_size;
  const std::vector<int> order =
      epoch_order(options_.training, "retrain", static_cast<int>(epoch), num_training_);
  const int64_t count = std::min<int64_t>(options_.training.batch_size, num_training_ - first);
  const at::Tensor ids =
      ids_of(std::span(order).subspan(static_cast<size_t>(first), static_cast<size_t>(count)));

  AdamWStep adamw;
  adamw.lr = learning_rate(options_.training, progress_.step, num_steps());
  adamw.step = progress_.step + 1;
  const auto adapters = [&](int block) -> BlockAdapters& {
    return blocks_[static_cast<size_t>(block)];
  };
  const double loss = forward_.loss_and_gradients(
      ids, [&](int block) { return adapters(block).leaves(model_.compute); },
      [&](int block, const NamedTensors& leaves) { adapters(block).step(leaves, adamw); });
  if (!std::isfinite(loss)) {
    progress_.fallback = fmt::format("the loss was not finite at step {} of {}: a smaller rate?",
                                     progress_.step + 1, num_steps());
    return;
  }

  ++progress_.step;
  progress_.tokens += ids.numel();
  progress_.step_loss = loss;
  progress_.epoch_loss += loss;
  if (progress_.step % steps_per_epoch_ == 0) {
    progress_.losses.push_back(progress_.epoch_loss / static_cast<double>(steps_per_epoch_));
    progress_.epoch_loss = 0;
  }
}

void Retrainer::evaluate_epoch(const Stop& stop) {
  const bool is_pruned = progress_.validations.empty();
  Values values = this->values();
  const std::optional<double> validation = mean_loss(values, held_out_, stop);
  if (!validation) return;
  if (is_pruned) {
    progress_.loss_pruned = mean_loss(values, first_, stop);
    if (!progress_.loss_pruned) return;
    if (!std::isfinite(*validation + *progress_.loss_pruned)) {
      throw NumericalError("next-token loss of the pruned model", 1, 1);
    }
  }
  if (!std::isfinite(*validation)) {
    progress_.fallback =
        fmt::format("the held-out loss was not finite after step {} of {}: a smaller rate?",
                    progress_.step, num_steps());
    return;
  }
  progress_.validations.push_back(*validation);
  if (!is_pruned && *validation < progress_.validations[static_cast<size_t>(progress_.best)]) {
    progress_.best = static_cast<int>(progress_.validations.size()) - 1;
    best_ = std::move(values);
  }
}

void Retrainer::evaluate_result(const Stop& stop) {
  progress_.loss_retrained = best_.empty() ? progress_.loss_pruned : mean_loss(best_, first_, stop);
}

std::optional<double> Retrainer::mean_loss(const Values& values, std::span<const int> windows,
                                           const Stop& stop) const {
  const at::NoGradGuard no_graph;
  const auto batch = static_cast<size_t>(options_.training.batch_size);
  double sum = 0;
  for (size_t first = 0; first < windows.size(); first += batch) {
    if (stop && stop()) return std::nullopt;
    const auto part = windows.subspan(first, std::min(batch, windows.size() - first));
    const at::Tensor ids = ids_of(part);
    at::Tensor hidden = forward_.embedded(ids);
    for (size_t block = 0; block < blocks_.size(); ++block) {
      hidden = forward_.block_output(static_cast<int>(block), blocks_[block].merged(values[block]),
                                     hidden, ids.size(0));
    }
    sum += forward_.loss(hidden, ids).item<double>();
  }
  return sum / static_cast<double>(static_cast<int64_t>(windows.size()) * (ids_.size(1) - 1));
}

Retrainer::Values Retrainer::values() const {
  Values values;
  for (const BlockAdapters& block : blocks_) values.push_back(block.values());
  return values;
}

NamedTensors Retrainer::state() const {
  NamedTensors state;
  for (size_t block = 0; block < blocks_.size(); ++block) {
    for (const auto& [name, adamw] : blocks_[block].parameters()) {
      state[name + ".value"] = adamw.master;
      state[name + ".first_moment"] = adamw.first_moment;
      state[name + ".second_moment"] = adamw.second_moment;
      if (!best_.empty()) state[name + ".best"] = best_[block].at(name);
    }
  }
  return state;
}

void Retrainer::restore(RetrainProgress progress, const NamedTensors& state) {
  const at::NoGradGuard no_graph;
  for (BlockAdapters& block : blocks_) {
    for (auto& [name, adamw] : block.parameters()) {
      copy_into(adamw.master, state, name + ".value");
      copy_into(adamw.first_moment, state, name + ".first_moment");
      copy_into(adamw.second_moment, state, name + ".second_moment");
    }
  }
  best_.clear();
  if (progress.best > 0) {
    best_ = values();
    for (NamedTensors& block : best_) {
      for (auto& [name, value] : block) copy_into(value, state, name + ".best");
    }
  }
  progress_ = std::move(progress);
}

NamedTensors Retrainer::result(int block) const {
  const BlockAdapters& adapters = blocks_.at(static_cast<size_t>(block));
  return best_.empty() ? adapters.pruned() : adapters.merged(best_[static_cast<size_t>(block)]);
}

}  // namespace coppice
