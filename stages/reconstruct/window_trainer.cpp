#include "stages/reconstruct/window_trainer.h"

#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "stages/reconstruct.h"
#include "stages/reconstruct/loss.h"
#include "stages/reconstruct/schedule.h"
#include "stages/reconstruct/window_pass.h"

namespace coppice {
WindowTrainer::WindowTrainer(SpanJob& span, HalfRange halves, Variant& variant,
                             const ReconstructOptions& options, std::string name)
    : span_(span),
      variant_(variant),
      halves_(halves),
      options_(options),
      name_(std::move(name)),
      data_(window_data(span, halves, options)),
      weights_(span, halves, variant, options),
      split_(hold_out(options, data_.inputs->num_windows(), name_)),
      micro_batch_(static_cast<size_t>(options.batch_size)) {}

void WindowTrainer::run(WindowReport& report) {
  {
    const std::vector<at::Tensor> pruned = weights_.values();
    report.validation_pruned = report.validation_reconstructed = evaluate(pruned, split_.held_out);
    report.loss_pruned = report.loss_reconstructed = evaluate(pruned, split_.first);
  }
  if (!std::isfinite(report.validation_pruned)) {
    report.fallback = "the held-out loss of the pruned weights is not finite";
    return;
  }
  if (fits(options_)) fit(report);
  if (trains_adamw(options_)) train(report);
  if (report.kept != "pruned")
    report.loss_reconstructed = evaluate(weights_.values(), split_.first);
}

void WindowTrainer::fit(WindowReport& report) {
  std::vector<at::Tensor> best;
  for (const double ridge : ridges_of(options_)) {
    std::vector<at::Tensor> fitted = weights_.fitted(ridge);
    const double validation = evaluate(fitted, split_.held_out);
    if (!best.empty() && !is_better(validation, report.validation_fitted)) continue;
    report.validation_fitted = validation;
    report.ridge = ridge;
    best = std::move(fitted);
  }
  const std::string solver = fit_name(options_);
  if (!(report.validation_fitted < report.validation_reconstructed)) {
    report.fallback = not_better(solver, report.validation_fitted, report.validation_reconstructed);
    return;
  }
  report.kept = solver;
  report.validation_reconstructed = report.validation_fitted;
  keep(best);
}

void WindowTrainer::train(WindowReport& report) {
  ReconstructOptions options = options_;
  Attempt last;
  for (report.retries = 0;; ++report.retries, options.lr /= 2) {
    last = attempt_in_memory(options, report.validation_reconstructed);
    if (last.is_finite || report.retries == kMaxRetries) break;
    weights_.restart();
  }
  const auto batch = static_cast<size_t>(options.batch_size);
  report.micro_batch = micro_batch_ < batch ? static_cast<int>(micro_batch_) : 0;
  report.lr = options.lr;
  report.steps = last.steps;
  if (!last.is_finite) {
    report.fallback = diverged(options.lr);
  } else if (last.best.empty()) {
    report.fallback = not_better("AdamW", last.best_validation, report.validation_reconstructed);
  } else {
    report.fallback.clear();
    report.kept = "adamw";
    report.validation_reconstructed = last.best_validation;
    return keep(last.best);
  }
  weights_.restart();  // what is kept
}

void WindowTrainer::keep(const std::vector<at::Tensor>& values) {
  for (size_t i = 0; i < values.size(); ++i) {
    if (!values[i].defined()) continue;
    variant_.room_for(weights_.names()[i], values[i]).copy_(values[i]);
    variant_.mark_trained(weights_.names()[i]);
  }
  weights_.restart();
}

WindowTrainer::Attempt WindowTrainer::attempt_in_memory(const ReconstructOptions& options,
                                                        double validation_to_beat) {
  try {
    return attempt(options, validation_to_beat);
  } catch (const c10::OutOfMemoryError&) {
    if (micro_batch_ < static_cast<size_t>(options.batch_size) || micro_batch_ == 1) throw;
  }
  micro_batch_ = (micro_batch_ + 1) / 2;
  weights_.restart();
  return attempt(options, validation_to_beat);
}

WindowTrainer::Attempt WindowTrainer::attempt(const ReconstructOptions& options,
                                              double validation_to_beat) {
  const int64_t steps_per_epoch =
      (split_.num_training + options.batch_size - 1) / options.batch_size;
  const int64_t num_steps = steps_per_epoch * options.epochs;
  Attempt result;
  result.best_validation = INFINITY;
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    const double loss = run_epoch(options, epoch, num_steps, result.steps).item<double>();
    std::vector<at::Tensor> values = weights_.values();
    const double validation = evaluate(values, split_.held_out);
    result.is_finite = std::isfinite(loss) && std::isfinite(validation);
    if (!result.is_finite) break;
    if (validation < std::min(validation_to_beat, result.best_validation)) {
      result.best = std::move(values);
    }
    result.best_validation = std::min(result.best_validation, validation);
  }
  return result;
}

at::Tensor WindowTrainer::run_epoch(const ReconstructOptions& options, int epoch, int64_t num_steps,
                                    int64_t& step) {
  const std::vector<int> order = epoch_order(options, name_, epoch, split_.num_training);
  data_.announce(order);
  const std::span<const int> all(order);
  const size_t batch_size = static_cast<size_t>(options.batch_size);
  at::Tensor sum;  // read by the caller once an epoch: asking a GPU for every step would stall it
  for (size_t first = 0; first < all.size(); first += batch_size) {
    const at::Tensor error =
        accumulate_gradients(all.subspan(first, std::min(batch_size, all.size() - first)));
    sum = sum.defined() ? sum.add_(error) : error;
    AdamWStep adamw;
    adamw.lr = learning_rate(options, step, num_steps);
    adamw.step = ++step;
    weights_.step(adamw);
  }
  return sum;
}

at::Tensor WindowTrainer::accumulate_gradients(std::span<const int> batch) {
  WindowPass pass(span_, halves_, weights_.leaves());
  at::Tensor sum;
  double terms = 0;
  for (size_t first = 0; first < batch.size(); first += micro_batch_) {
    const auto part = batch.subspan(first, std::min(micro_batch_, batch.size() - first));
    at::Tensor gradient = pass.forward(data_.inputs->read(part));  // once it is overwritten
    const at::Tensor target = data_.targets->read(part).hidden;
    const at::Tensor error = loss_gradient_(options_.loss, gradient, target);
    sum = sum.defined() ? sum.add_(error) : error;
    if (part.size() == batch.size()) {
      pass.backward(gradient);
      return sum;
    }
    const double of_part = loss_terms(options_.loss, gradient);
    pass.backward(gradient.mul_(of_part));  // of the part's sum: parts may differ in length
    terms += of_part;
  }
  weights_.scale_gradients(1 / terms);
  return sum;
}

double WindowTrainer::evaluate(const std::vector<at::Tensor>& values,
                               std::span<const int> windows) {
  return mean_loss(span_, halves_, weights_.with(values), data_, windows, options_);
}

}  // namespace coppice
