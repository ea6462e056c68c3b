#include "stages/reconstruct/matrix_trainer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "stages/model/block_forward.h"
#include "stages/model/half_cost.h"
#include "stages/propagation.h"
#include "stages/reconstruct.h"  // learning_rate
#include "stages/reconstruct/least_squares.h"
#include "stages/reconstruct/loss.h"
#include "stages/reconstruct/schedule.h"

namespace coppice {
namespace {

AdamWState state_of(const at::Tensor& start, at::ScalarType compute,
                    const ReconstructOptions& options) {
  AdamWState state;
  state.master = start.to(start.options().dtype(at::kFloat), /*non_blocking=*/false, /*copy=*/true,
                          at::MemoryFormat::Contiguous);
  if (trains_adamw(options)) {
    state.first_moment = at::zeros_like(state.master);
    state.second_moment = at::zeros_like(state.master);
  }
  if (compute != at::kFloat) state.compute = state.master.to(compute);
  return state;
}

void restart_state(AdamWState& state, const at::Tensor& start) {
  state.master.copy_(start);
  if (state.first_moment.defined()) {
    state.first_moment.zero_();
    state.second_moment.zero_();
  }
  if (state.compute.defined()) state.compute.copy_(state.master);
}

const at::Tensor& used_by_products(const AdamWState& state) {
  return state.compute.defined() ? state.compute : state.master;
}

}  // namespace

MatrixTrainer::MatrixTrainer(SpanJob& span, int half, Variant& variant,
                             const ReconstructOptions& options, std::string name)
    : span_(span),
      variant_(variant),
      half_(half),
      options_(options),
      name_(std::move(name)),
      inputs_(span.boundaries.source(entering(input_stream(options), half))),
      forward_(converted(span.architecture, span.dense_at(half), half_of(half), span.compute)),
      split_(hold_out(options, inputs_->num_windows(), name_)) {
  if (options.propagation == Propagation::kMixed) {
    dense_inputs_ = span.boundaries.source({Stream::kDense, half});
  }
  const at::NoGradGuard no_graph;
  for (const LinearSpec& spec : span.architecture.linears) {
    const std::string weight = in_block(span.architecture, half / 2, spec.name) + ".weight";
    if (spec.half == half_of(half) && variant.masks.contains(weight)) {
      matrices_.push_back(start(spec));
    }
  }
}

MatrixTrainer::Matrix MatrixTrainer::start(const LinearSpec& spec) const {
  Matrix matrix{spec,
                in_block(span_.architecture, half_ / 2, spec.name),
                span_.dense_at(half_).linears.at(spec.role),
                forward_.linears.at(spec.role),
                {},
                {}};
  const std::string weight = matrix.name + ".weight";
  matrix.weight = state_of(variant_.adapted.at(weight), span_.compute, options_);
  matrix.weight.mask = variant_.masks.at(weight);
  if (matrix.dense.bias.defined() && options_.train_biases) {
    matrix.bias = state_of(matrix.dense.bias, span_.compute, options_);
  }
  matrix.report.halves = {half_, half_ + 1};
  matrix.report.name = spec.name;
  return matrix;
}

void MatrixTrainer::restart(Matrix& matrix) const {
  restart_state(matrix.weight, variant_.adapted.at(matrix.name + ".weight"));
  if (!matrix.bias.master.defined()) return;
  const auto kept = variant_.adapted.find(matrix.name + ".bias");
  restart_state(matrix.bias, kept == variant_.adapted.end() ? matrix.dense.bias : kept->second);
}

std::vector<at::Tensor> MatrixTrainer::rounded(const Matrix& matrix) const {
  std::vector<at::Tensor> values = {matrix.weight.master.to(matrix.dense.weight.scalar_type(),
                                                            /*non_blocking=*/false, /*copy=*/true)};
  if (matrix.bias.master.defined()) {
    values.push_back(matrix.bias.master.to(matrix.dense.bias.scalar_type(), false, true));
  }
  return values;
}

Linear MatrixTrainer::used(const Matrix& matrix, const std::vector<at::Tensor>& values) const {
  return {values[0].to(span_.compute),
          values.size() > 1 ? values[1].to(span_.compute) : matrix.target.bias};
}

void MatrixTrainer::keep(Matrix& matrix, const std::vector<at::Tensor>& values,
                         const std::string& solver) {
  matrix.report.kept = solver;
  const char* const kParts[] = {".weight", ".bias"};
  for (size_t i = 0; i < values.size(); ++i) {
    const std::string name = matrix.name + kParts[i];
    variant_.room_for(name, values[i]).copy_(values[i]);
    variant_.mark_trained(name);
  }
  restart(matrix);
}

std::map<std::string, MatrixTrainer::Inputs> MatrixTrainer::capture(std::span<const int> windows) {
  std::map<std::string, Inputs> captured;
  const auto run = [&](ActivationSource& source, at::Tensor Inputs::*part) {
    forward_half(half_, span_.architecture, forward_, span_.rotary, source.read(windows),
                 [&](const std::string& input, const at::Tensor& x) { captured[input].*part = x; });
  };
  run(*inputs_, &Inputs::x);
  if (dense_inputs_) run(*dense_inputs_, &Inputs::dense);
  for (auto& [input, tensors] : captured) {
    if (!tensors.dense.defined()) tensors.dense = tensors.x;
  }
  return captured;
}

std::vector<MatrixTrainer::Judgement> MatrixTrainer::evaluate(
    const std::vector<std::vector<at::Tensor>>& values, std::span<const int> windows) {
  inputs_->announce(windows);
  if (dense_inputs_) dense_inputs_->announce(windows);
  std::vector<Linear> candidates;
  for (size_t i = 0; i < matrices_.size(); ++i) {
    candidates.push_back(used(matrices_[i], values[i]));
  }
  std::vector<at::Tensor> sums(matrices_.size());  // read once: asking a GPU stalls it
  std::vector<double> terms(matrices_.size());
  const auto batch_size = static_cast<size_t>(options_.batch_size);
  for (size_t first = 0; first < windows.size(); first += batch_size) {
    const auto captured =
        capture(windows.subspan(first, std::min(batch_size, windows.size() - first)));
    for (size_t i = 0; i < matrices_.size(); ++i) {
      const Matrix& matrix = matrices_[i];
      const Inputs& in = captured.at(matrix.spec.input);
      if (in.x.size(0) == 0) continue;  // an expert that the batch passed by
      const at::Tensor target = at::linear(in.dense, matrix.target.weight, matrix.target.bias);
      const at::Tensor output = at::linear(in.x, candidates[i].weight, candidates[i].bias);
      const at::Tensor sum = loss_sum(options_.loss, output, target);
      sums[i] = sums[i].defined() ? sums[i].add_(sum) : sum;
      terms[i] += loss_terms(options_.loss, output);
    }
  }
  std::vector<Judgement> judgements;
  for (size_t i = 0; i < sums.size(); ++i) {
    const bool is_seen = sums[i].defined();
    judgements.push_back({is_seen ? sums[i].item<double>() / terms[i] : 0, is_seen});
  }
  return judgements;
}

std::vector<WindowReport> MatrixTrainer::run() {
  const at::NoGradGuard no_graph;
  if (matrices_.empty()) return {};
  std::vector<std::vector<at::Tensor>> values;
  for (const Matrix& matrix : matrices_) values.push_back(rounded(matrix));
  const std::vector<Judgement> held_out = evaluate(values, split_.held_out),
                               first = evaluate(values, split_.first);
  for (size_t i = 0; i < matrices_.size(); ++i) {
    WindowReport& report = matrices_[i].report;
    report.validation_pruned = report.validation_reconstructed = held_out[i].loss;
    report.loss_pruned = report.loss_reconstructed = first[i].loss;
    if (!std::isfinite(held_out[i].loss)) {
      report.fallback = "the held-out loss of the pruned weights is not finite";
    } else if (!held_out[i].is_seen) {
      report.fallback = "no held-out calibration token was routed to it";
    }
    matrices_[i].is_judged = report.fallback.empty();
  }
  for (const double ridge : ridges_of(options_)) fit(ridge);
  if (trains_adamw(options_)) train();
  for (size_t i = 0; i < matrices_.size(); ++i) {
    restart(matrices_[i]);
    values[i] = rounded(matrices_[i]);
  }
  const std::vector<Judgement> last = evaluate(values, split_.first);
  std::vector<WindowReport> reports;
  for (size_t i = 0; i < matrices_.size(); ++i) {
    if (matrices_[i].report.kept != "pruned") matrices_[i].report.loss_reconstructed = last[i].loss;
    reports.push_back(std::move(matrices_[i].report));
  }
  return reports;
}

void MatrixTrainer::fit(double ridge) {
  std::vector<std::vector<at::Tensor>> values;
  for (const Matrix& matrix : matrices_) {
    values.push_back(rounded(matrix));
    if (!matrix.is_judged) continue;
    const std::string input = in_block(span_.architecture, half_ / 2, matrix.spec.input);
    values.back()[0] = least_squares_as_written(matrix.dense.weight, matrix.weight.mask,
                                                span_.statistics.at(input).gram, ridge);
  }
  const std::vector<Judgement> judgements = evaluate(values, split_.held_out);
  for (size_t i = 0; i < matrices_.size(); ++i) {
    WindowReport& report = matrices_[i].report;
    if (!matrices_[i].is_judged) continue;
    const double loss = judgements[i].loss;
    if (report.ridge == 0 || is_better(loss, report.validation_fitted)) {
      report.validation_fitted = loss;
      report.ridge = ridge;
    }
    if (loss < report.validation_reconstructed) {
      report.fallback.clear();
      report.validation_reconstructed = loss;
      values[i].resize(1);  // the bias stays as it is
      keep(matrices_[i], values[i], "least_squares");
    } else if (report.kept == "pruned") {
      report.fallback =
          not_better("least_squares", report.validation_fitted, report.validation_reconstructed);
    }
  }
}

// Those whose loss was not finite start again at half the rate; the others have what they have.
void MatrixTrainer::train() {
  for (Matrix& matrix : matrices_) {
    matrix.report.lr = options_.lr;
    matrix.is_training = matrix.is_judged;
  }
  for (int retries = 0;; ++retries) {
    attempt();
    bool any_left = false;
    for (Matrix& matrix : matrices_) {
      if (!matrix.is_training) continue;
      restart(matrix);
      if (retries == kMaxRetries) {
        matrix.report.fallback = diverged(matrix.report.lr);
      } else {
        any_left = true;
        matrix.report.lr /= 2;
        matrix.report.retries = retries + 1;
      }
    }
    if (!any_left) return;
  }
}

// A matrix that ends finite is kept or put back, and no longer training.
void MatrixTrainer::attempt() {
  const int64_t steps_per_epoch =
      (split_.num_training + options_.batch_size - 1) / options_.batch_size;
  const int64_t num_steps = steps_per_epoch * options_.epochs;
  std::vector<double> best(matrices_.size(), INFINITY);
  std::vector<bool> is_finite(matrices_.size(), true);
  int64_t step = 0;
  for (Matrix& matrix : matrices_) matrix.best.clear();
  for (int epoch = 0; epoch < options_.epochs; ++epoch) {
    std::vector<at::Tensor> sums(matrices_.size());
    run_epoch(epoch, num_steps, step, sums);
    std::vector<std::vector<at::Tensor>> values;
    for (const Matrix& matrix : matrices_) values.push_back(rounded(matrix));
    const std::vector<Judgement> judgements = evaluate(values, split_.held_out);
    for (size_t i = 0; i < matrices_.size(); ++i) {
      Matrix& matrix = matrices_[i];
      if (!matrix.is_training) continue;
      const double loss = judgements[i].loss;
      const bool trained_finite = !sums[i].defined() || std::isfinite(sums[i].item<double>());
      is_finite[i] = is_finite[i] && std::isfinite(loss) && trained_finite;
      if (loss < std::min(matrix.report.validation_reconstructed, best[i])) {
        matrix.best = std::move(values[i]);
      }
      best[i] = std::min(best[i], loss);
    }
  }
  for (size_t i = 0; i < matrices_.size(); ++i) {
    Matrix& matrix = matrices_[i];
    WindowReport& report = matrix.report;
    if (!matrix.is_training) continue;
    report.steps = step;
    if (!is_finite[i]) continue;
    matrix.is_training = false;
    if (matrix.best.empty()) {
      report.fallback = not_better("AdamW", best[i], report.validation_reconstructed);
      restart(matrix);
      continue;
    }
    report.fallback.clear();
    report.validation_reconstructed = best[i];
    keep(matrix, matrix.best, "adamw");
    matrix.best.clear();
  }
}

void MatrixTrainer::run_epoch(int epoch, int64_t num_steps, int64_t& step,
                              std::vector<at::Tensor>& sums) {
  const std::vector<int> order = epoch_order(options_, name_, epoch, split_.num_training);
  inputs_->announce(order);
  if (dense_inputs_) dense_inputs_->announce(order);
  const std::span<const int> all(order);
  const auto batch_size = static_cast<size_t>(options_.batch_size);
  for (size_t first = 0; first < all.size(); first += batch_size, ++step) {
    const auto captured = capture(all.subspan(first, std::min(batch_size, all.size() - first)));
    for (size_t i = 0; i < matrices_.size(); ++i) {
      Matrix& matrix = matrices_[i];
      if (!matrix.is_training) continue;
      const Inputs& in = captured.at(matrix.spec.input);
      const at::Tensor loss = this->step(matrix, in, step, num_steps);
      sums[i] = sums[i].defined() ? sums[i].add_(loss) : loss;
    }
  }
}

/// Returns the batch's summed loss.
at::Tensor MatrixTrainer::step(Matrix& matrix, const Inputs& inputs, int64_t step,
                               int64_t num_steps) {
  ReconstructOptions options = options_;
  options.lr = matrix.report.lr;
  AdamWStep adamw;
  adamw.lr = learning_rate(options, step, num_steps);
  adamw.step = step + 1;
  if (inputs.x.size(0) == 0) {  // an expert that the batch passed by: its moments decay
    for (AdamWState* state : {&matrix.weight, &matrix.bias}) {
      if (state->master.defined()) masked_adamw(*state, at::zeros_like(state->master), adamw);
    }
    return at::zeros({}, matrix.weight.master.options());
  }
  const at::Tensor bias =
      matrix.bias.master.defined() ? used_by_products(matrix.bias) : matrix.target.bias;
  const at::Tensor target = at::linear(inputs.dense, matrix.target.weight, matrix.target.bias);
  at::Tensor gradient = at::linear(inputs.x, used_by_products(matrix.weight), bias);
  const at::Tensor loss = loss_gradient_(options_.loss, gradient, target);
  masked_adamw(matrix.weight, gradient.t().mm(inputs.x), adamw);
  if (matrix.bias.master.defined()) masked_adamw(matrix.bias, gradient.sum(0), adamw);
  return loss;
}

}  // namespace coppice
