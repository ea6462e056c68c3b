#include "stages/model/divergence.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>
#include <tuple>

namespace coppice {

RunningDivergence::RunningDivergence(int64_t tokens, at::Device device) {
  const auto fp32 = at::TensorOptions(device).dtype(at::kFloat);
  for (Best* best : {&reference_, &model_}) {
    best->logit = at::full({tokens}, -std::numeric_limits<float>::infinity(), fp32);
    best->row = at::zeros({tokens}, fp32.dtype(at::kLong));
  }
  sum_ = at::zeros({tokens}, fp32);
  weighted_ = at::zeros({tokens}, fp32);
}

void RunningDivergence::Best::add(int64_t first_token, const at::Tensor& logits,
                                  int64_t first_row) {
  const auto [value, index] = logits.max(1);  // [n]
  at::Tensor best = logit.narrow(0, first_token, logits.size(0));
  at::Tensor best_row = row.narrow(0, first_token, logits.size(0));
  const at::Tensor is_better = value > best;
  best_row.copy_(at::where(is_better, index + first_row, best_row));
  best.copy_(at::where(is_better, value, best));
}

void RunningDivergence::add(int64_t first_token, const at::Tensor& reference,
                            const at::Tensor& model, int64_t first_row) {
  const int64_t tokens = reference.size(0);
  const at::Tensor old_max = reference_.logit.narrow(0, first_token, tokens).clone();
  reference_.add(first_token, reference, first_row);
  model_.add(first_token, model, first_row);
  const at::Tensor max = reference_.logit.narrow(0, first_token, tokens);
  const at::Tensor rescale = (old_max - max).exp_();          // [n]
  at::Tensor weight = (reference - max.unsqueeze(1)).exp_();  // [n, rows]
  sum_.narrow(0, first_token, tokens).mul_(rescale).add_(weight.sum(1));
  const at::Tensor difference = (reference - model).mul_(weight);
  weighted_.narrow(0, first_token, tokens).mul_(rescale).add_(difference.sum(1));
}

at::Tensor RunningDivergence::kl(const at::Tensor& reference_log_sum_exp,
                                 const at::Tensor& model_log_sum_exp) const {
  return (weighted_ / sum_).sub_(reference_log_sum_exp).add_(model_log_sum_exp);
}

at::Tensor RunningDivergence::agrees() const { return reference_.row == model_.row; }

}  // namespace coppice
