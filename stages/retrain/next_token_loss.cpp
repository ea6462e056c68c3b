#include "stages/retrain/next_token_loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/full.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "stages/model/block_weights.h"  // converted

namespace coppice {
namespace {

FinalWeights converted(const FinalWeights& final, at::ScalarType dtype) {
  FinalWeights result;
  if (final.norm.gain.defined()) result.norm = converted(final.norm, dtype);
  if (final.project.defined()) result.project = final.project.to(dtype);
  return result;
}

int64_t tokens_at_once(int64_t logits_at_once, int64_t vocab, int64_t length) {
  return std::min(std::max<int64_t>(1, logits_at_once / vocab), length - 1);
}

// softmax − one-hot, in place of the logits [tokens, vocab].
void logits_to_gradient_(at::Tensor& logits, const at::Tensor& log_sum_exp,
                         const at::Tensor& targets) {
  logits.sub_(log_sum_exp.unsqueeze(1)).exp_();
  const at::Tensor column = targets.unsqueeze(1);
  logits.scatter_add_(1, column, at::full(column.sizes(), -1, logits.options()));
}

}  // namespace

at::Tensor next_token_loss(const OutputHead& head, const at::Tensor& hidden, const at::Tensor& ids,
                           at::Tensor* gradient) {
  const at::NoGradGuard no_graph;
  const int64_t sequences = ids.size(0), length = ids.size(1);
  const double predictions = static_cast<double>(sequences * (length - 1));
  const at::Tensor rows = head.rows.to(hidden.scalar_type());
  const FinalWeights final = converted(head.final, hidden.scalar_type());
  const int64_t at_once = tokens_at_once(head.logits_at_once, rows.size(0), length);
  at::Tensor sum = at::zeros({}, hidden.options().dtype(at::kDouble));
  if (gradient != nullptr) *gradient = at::zeros_like(hidden);
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    for (int64_t first = 0; first < length - 1; first += at_once) {
      const int64_t count = std::min(at_once, length - 1 - first);
      const int64_t place = sequence * length + first;
      const at::Tensor targets = ids.select(0, sequence).narrow(0, first + 1, count);
      const at::Tensor x = hidden.narrow(0, place, count).detach().clone();
      x.requires_grad_(gradient != nullptr);
      at::Tensor input;
      {
        const at::AutoGradMode graph(gradient != nullptr);  // from the head's input back to x
        input = head_input(head.architecture, final, x);
      }
      at::Tensor logits = head_logits(input.detach(), rows);  // [count, vocab]
      const at::Tensor log_sum_exp = at::logsumexp(logits, 1);
      const at::Tensor found = logits.gather(1, targets.unsqueeze(1)).squeeze(1);
      sum.add_((log_sum_exp - found).sum(at::kDouble));
      if (gradient == nullptr) continue;
      logits_to_gradient_(logits, log_sum_exp, targets);
      // The mean's divisor comes last: a probability over thousands of tokens is tiny in bf16.
      input.backward(logits.to(hidden.scalar_type()).mm(rows).mul_(1 / predictions));
      gradient->narrow(0, place, count).copy_(x.grad());
    }
  }
  return sum;
}

double next_token_loss_bytes(int64_t length, int64_t vocab, int64_t hidden, int64_t element_bytes) {
  const int64_t logits = tokens_at_once(kLogitsAtOnce, vocab, length) * vocab;
  return static_cast<double>(3 * 4 * logits + vocab * hidden * element_bytes);
}

}  // namespace coppice
