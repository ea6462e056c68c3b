#include "stages/reconstruct/window_pass.h"

#include <utility>

namespace coppice {
namespace {

std::vector<HalfRange> parts_of(HalfRange halves, KeptActivations kept) {
  if (kept == KeptActivations::kAll) return {halves};
  std::vector<HalfRange> parts;
  for (int half = halves.first; half < halves.last; ++half) parts.push_back({half, half + 1});
  return parts;
}

}  // namespace

WindowPass::WindowPass(const SpanJob& span, HalfRange halves, const WindowBlocks& weights)
    : span_(span), weights_(weights), parts_(parts_of(halves, span.kept_activations)) {}

at::Tensor WindowPass::forward(MicroBatch x) {
  entering_.clear();
  for (const HalfRange& part : parts_) {
    output_.reset();  // the graph of the part before: not beside this one's
    const bool is_first = part.first == parts_.front().first;
    entering_.push_back({x.hidden.detach().requires_grad_(!is_first), x.lengths});
    output_ = window_output(span_, part, weights_, entering_.back());
    x.hidden = output_.detach();
  }
  return std::move(x.hidden);
}

void WindowPass::backward(at::Tensor gradient) {
  std::exchange(output_, {}).backward(gradient);
  for (size_t part = parts_.size() - 1; part > 0; --part) {
    gradient = entering_.back().hidden.grad();
    entering_.pop_back();
    window_output(span_, parts_[part - 1], weights_, entering_.back()).backward(gradient);
  }
  entering_.clear();
}

}  // namespace coppice
