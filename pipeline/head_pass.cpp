#include "pipeline/head_pass.h"

#include <ATen/ops/tensor.h>

#include <cmath>
#include <numeric>

#include "stages/model/norm.h"

namespace coppice {

HeadPass::HeadPass(const SourceModel& model, const TokenWindows& tokens, const Device& device)
    : model_(model), tokens_(tokens), device_(device) {
  std::vector<int64_t> targets;
  for (int64_t window = 0; window < tokens.count(); ++window) {
    const auto ids = tokens.window(window);
    targets.insert(targets.end(), ids.begin() + 1, ids.end());
  }
  sums_ = std::make_unique<RunningLogSumExp>(at::tensor(targets, at::kLong).to(device.where()));
}

void HeadPass::add(const GraphSpan& span, ActivationSource& last_hidden) {
  const Architecture& architecture = model_.architecture;
  const ModelSpan& what = static_cast<const SpanWork*>(span.work.get())->span;
  const auto compute = device_.compute_dtype(scalar_type(architecture.dtype));
  const at::Tensor rows = slot_tensor(span, model_, device_, architecture.head).to(compute);
  const at::Tensor gain = slot_tensor(span, model_, device_, architecture.final_norm).to(compute);

  const int64_t predicted = tokens_.seqlen - 1;
  std::vector<int> order(size_t(tokens_.count()));
  std::iota(order.begin(), order.end(), 0);
  last_hidden.announce(order);
  for (const int window : order) {
    const MicroBatch batch = last_hidden.read(std::span(&window, 1));
    const at::Tensor x = batch.hidden.narrow(0, 0, predicted);  // [seqlen − 1, hidden]
    const at::Tensor normed = rms_normalize(x, architecture.norm_epsilon).mul(gain);
    sums_->add(window * predicted, normed, rows, what.first);
  }
}

Quality HeadPass::quality() const {
  const at::Tensor nll = sums_->nll();
  Quality quality;
  quality.tokens = nll.numel();
  quality.nll = nll.to(at::kDouble).mean().item<double>();
  quality.perplexity = std::exp(quality.nll);
  return quality;
}

}  // namespace coppice
