#include "stages/model/head.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <limits>
#include <utility>

#include "stages/model/norm.h"

namespace coppice {

FinalWeights gather_final(const Architecture& architecture,
                          const std::function<at::Tensor(const std::string& name)>& tensor) {
  FinalWeights weights;
  if (!architecture.final_norm.empty()) {
    weights.norm = gather_norm(architecture, architecture.final_norm, tensor);
  }
  if (!architecture.project_out.empty()) weights.project = tensor(architecture.project_out);
  return weights;
}

at::Tensor head_input(const Architecture& architecture, const FinalWeights& weights,
                      const at::Tensor& x) {
  const at::Tensor final = weights.norm.gain.defined() ? normed(architecture, weights.norm, x) : x;
  return weights.project.defined() ? at::linear(final, weights.project) : final;
}

at::Tensor head_logits(const at::Tensor& x, const at::Tensor& head_rows) {
  return at::linear(x, head_rows).to(at::kFloat);  // [n, rows]
}

RunningLogSumExp::RunningLogSumExp(at::Tensor targets) : targets_(std::move(targets)) {
  const auto fp32 = targets_.options().dtype(at::kFloat);
  max_ = at::full_like(targets_, -std::numeric_limits<float>::infinity(), fp32);
  sum_ = at::zeros_like(targets_, fp32);
  target_logit_ = at::zeros_like(targets_, fp32);
}

void RunningLogSumExp::add(int64_t first_token, at::Tensor logits, int64_t first_row) {
  const int64_t tokens = logits.size(0), rows = logits.size(1);
  at::Tensor max = max_.narrow(0, first_token, tokens);
  at::Tensor sum = sum_.narrow(0, first_token, tokens);

  const at::Tensor column = targets_.narrow(0, first_token, tokens) - first_row;
  const at::Tensor is_here = (column >= 0).logical_and_(column < rows);
  const at::Tensor found = logits.gather(1, column.clamp(0, rows - 1).unsqueeze(1)).squeeze(1);
  at::Tensor target_logit = target_logit_.narrow(0, first_token, tokens);
  target_logit.copy_(at::where(is_here, found, target_logit));

  const at::Tensor new_max = at::maximum(max, logits.amax(1));
  sum.mul_((max - new_max).exp_()).add_(logits.sub_(new_max.unsqueeze(1)).exp_().sum(1));
  max.copy_(new_max);
}

at::Tensor RunningLogSumExp::log_sum_exp() const { return sum_.log().add_(max_); }

at::Tensor RunningLogSumExp::nll() const { return log_sum_exp().sub_(target_logit_); }

}  // namespace coppice
