#include "pipeline/head_pass.h"

#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "stages/finite.h"  // require_finite

namespace coppice {
namespace {

double mean(const at::Tensor& values) { return values.to(at::kDouble).mean().item<double>(); }

// The smallest value that at least `share` of the values do not exceed.
double percentile(const at::Tensor& values, double share) {
  const int64_t rank = int64_t(std::ceil(share * double(values.numel())));
  return std::get<0>(values.sort())[std::max<int64_t>(rank, 1) - 1].item<double>();
}

}  // namespace

HeadPass::HeadPass(const TokenWindows& tokens, const Device& device, ForwardPass& model,
                   ForwardPass* reference)
    : tokens_(tokens), device_(device), model_(model), reference_(reference) {
  std::vector<int64_t> ids;
  for (int64_t window = 0; window < tokens.count(); ++window) {
    const auto of_window = tokens.window(window);
    ids.insert(ids.end(), of_window.begin() + 1, of_window.end());
  }
  const at::Tensor targets = at::tensor(ids, at::kLong).to(device.where());
  sums_ = std::make_unique<RunningLogSumExp>(targets);
  if (reference == nullptr) return;
  reference_sums_ = std::make_unique<RunningLogSumExp>(targets);
  divergence_ = std::make_unique<RunningDivergence>(targets.numel(), device.where());
}

HeadPass::Chunk HeadPass::chunk_of(const GraphSpan& span, const ForwardPass& pass,
                                   Copy copy) const {
  const SourceModel& model = pass.model();
  const auto tensor = [&](const std::string& name) {
    return slot_tensor(span, model, device_, name)
        .to(pass.compute_dtype(), /*non_blocking=*/false, copy == Copy::kAlways);
  };
  return {tensor(model.architecture.head), gather_final(model.architecture, tensor)};
}

at::Tensor HeadPass::logits(const Chunk& chunk, ForwardPass& pass, int window) const {
  const MicroBatch batch = pass.last_hidden().read(std::span(&window, 1));
  const at::Tensor x = batch.hidden.narrow(0, 0, tokens_.seqlen - 1);  // [seqlen − 1, hidden]
  return head_logits(head_input(pass.model().architecture, chunk.before, x), chunk.rows);
}

void HeadPass::hold_reference(const GraphSpan& span) {
  held_ = {};  // the one before goes first
  held_ = chunk_of(span, *reference_, Copy::kAlways);
}

void HeadPass::add(const GraphSpan& span) {
  const Chunk chunk = chunk_of(span, model_, Copy::kIfConverted);
  const int64_t first_row = static_cast<const SpanWork*>(span.work.get())->span.first;
  const int64_t predicted = tokens_.seqlen - 1;
  std::vector<int> order(size_t(tokens_.count()));
  std::iota(order.begin(), order.end(), 0);
  model_.last_hidden().announce(order);
  if (reference_ != nullptr) reference_->last_hidden().announce(order);
  for (const int window : order) {
    const at::Tensor own = logits(chunk, model_, window);  // [seqlen − 1, rows]
    if (reference_ != nullptr) {
      const at::Tensor theirs = logits(held_, *reference_, window);
      divergence_->add(window * predicted, theirs, own, first_row);
      reference_sums_->add(window * predicted, theirs, first_row);
    }
    sums_->add(window * predicted, own, first_row);
  }
}

Quality HeadPass::quality() const {
  const at::Tensor nll = sums_->nll();
  Quality quality;
  quality.tokens = nll.numel();
  require_finite("negative log-likelihood of the predicted tokens", nll);
  quality.nll = mean(nll);
  quality.perplexity = std::exp(quality.nll);
  if (reference_ == nullptr) return quality;
  const at::Tensor kl = divergence_->kl(reference_sums_->log_sum_exp(), sums_->log_sum_exp());
  require_finite("KL of the predicted tokens", kl);
  quality.against = Divergence{std::exp(mean(reference_sums_->nll())), mean(kl),
                               percentile(kl, 0.99), mean(divergence_->agrees())};
  return quality;
}

}  // namespace coppice
