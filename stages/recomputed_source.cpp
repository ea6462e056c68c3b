#include "stages/recomputed_source.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>

#include <utility>

#include "stages/model/block_forward.h"

namespace coppice {

RecomputedSource::RecomputedSource(const SpanJob& span, HalfRange halves,
                                   std::unique_ptr<ActivationSource> inputs)
    : span_(span),
      halves_(halves),
      inputs_(std::move(inputs)),
      check_("targets made again, " + to_string(Boundary{Stream::kDense, halves.last}),
             span.architecture.dtype) {
  const at::NoGradGuard no_graph;
  for (int half = halves_.first; half < halves_.last; ++half) {
    weights_.push_back(
        converted(span_.architecture, span_.dense_at(half), half_of(half), span_.compute));
  }
}

void RecomputedSource::announce(std::span<const int> order) {
  check_.require();
  inputs_->announce(order);
}

// One window at a time, as in the dense forward: rows per product change bits.
MicroBatch RecomputedSource::read(std::span<const int> windows) {
  const at::NoGradGuard no_graph;
  const at::ScalarType stored = span_.dense.front().linears.begin()->second.weight.scalar_type();
  MicroBatch batch;
  std::vector<at::Tensor> outputs;
  for (const int window : windows) {
    MicroBatch x = inputs_->read({&window, 1});
    for (int half = halves_.first; half < halves_.last; ++half) {
      x.hidden = forward_half(half, span_.architecture,
                              weights_[static_cast<size_t>(half - halves_.first)], span_.rotary, x);
    }
    check_.add(x.hidden);
    outputs.push_back(x.hidden.to(stored).to(span_.compute));
    batch.lengths.insert(batch.lengths.end(), x.lengths.begin(), x.lengths.end());
  }
  batch.hidden = outputs.size() == 1 ? std::move(outputs.front()) : at::cat(outputs, 0);
  return batch;
}

}  // namespace coppice
