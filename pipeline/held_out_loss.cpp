#include "pipeline/held_out_loss.h"

#include <ATen/ops/tensor.h>

namespace coppice {

HeldOutLoss::HeldOutLoss(const TokenWindows& tokens, int first_window, size_t num_models,
                         at::Device device)
    : seqlen_(tokens.seqlen) {
  std::vector<int64_t> ids;
  for (int64_t window = first_window; window < tokens.count(); ++window) {
    const auto of_window = tokens.window(window);
    ids.insert(ids.end(), of_window.begin() + 1, of_window.end());
  }
  const at::Tensor targets = at::tensor(ids, at::kLong).to(device);
  sums_.reserve(num_models);
  for (size_t model = 0; model < num_models; ++model) sums_.emplace_back(targets);
}

void HeldOutLoss::add(const Architecture& architecture, const at::Tensor& head_rows,
                      const FinalWeights& before, int64_t first_row,
                      const std::vector<at::Tensor>& hidden) {
  const int64_t predicted = seqlen_ - 1;
  for (size_t model = 0; model < sums_.size(); ++model) {
    for (int64_t window = 0; window < hidden[model].size(0) / seqlen_; ++window) {
      const at::Tensor x =
          hidden[model].narrow(0, window * seqlen_, predicted).to(head_rows.scalar_type());
      sums_[model].add(window * predicted,
                       head_logits(head_input(architecture, before, x), head_rows), first_row);
    }
  }
}

std::vector<double> HeldOutLoss::losses() const {
  std::vector<double> losses;
  losses.reserve(sums_.size());
  for (const RunningLogSumExp& sum : sums_) {
    losses.push_back(sum.nll().to(at::kDouble).mean().item<double>());
  }
  return losses;
}

double hidden_error(const at::Tensor& hidden, const at::Tensor& dense) {
  const at::Tensor reference = dense.to(at::kDouble);
  const double error = hidden.to(at::kDouble).sub(reference).square().sum().item<double>();
  return error / reference.square().sum().item<double>();
}

}  // namespace coppice
