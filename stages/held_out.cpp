#include "stages/held_out.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_like.h>

#include <numeric>
#include <stdexcept>

#include "stages/calibrate.h"  // cost of a forward pass
#include "stages/finite.h"
#include "stages/model/block_forward.h"
#include "stages/propagate.h"    // adapted_half
#include "stages/reconstruct.h"  // num_held_out
#include "stages/stored_states.h"

namespace coppice {
namespace {

/// x_0 of the held-out windows, as the cache has them.
MicroBatch held_out_embeddings(Boundaries& boundaries, double held_out_fraction) {
  const auto source = boundaries.source(entering(Stream::kDense, 0));
  const int count = num_held_out(held_out_fraction, source->num_windows());
  std::vector<int> windows(static_cast<size_t>(count));
  std::iota(windows.begin(), windows.end(), source->num_windows() - count);
  source->announce(windows);
  return source->read(windows);
}

}  // namespace

Cost HeldOutForward::cost(const SpanShape& shape) const {
  SpanShape few = shape;
  few.num_windows = num_held_out(held_out_fraction_, static_cast<int>(shape.num_windows));
  Cost cost = Calibrate({.stream = Stream::kPropagated}).cost(few);
  cost.bytes_moved = 0;  // it stays in memory
  return cost;
}

void HeldOutForward::run(WindowJob& job) const {
  if (job.variant == nullptr) throw std::logic_error("held-out forward: the job has no variant");
  const at::NoGradGuard no_graph;
  SpanJob& span = job.span;
  if (job.halves.first == 0) {
    job.variant->held_out = held_out_embeddings(span.boundaries, held_out_fraction_);
  }
  const std::vector<int>& lengths = job.variant->held_out.lengths;
  at::Tensor& held_out = job.variant->held_out.hidden;  // [tokens, hidden]
  if (!held_out.defined()) throw std::logic_error("held-out forward: nothing was handed on");
  held_out = held_out.to(span.compute);
  for (int half = job.halves.first; half < job.halves.last; ++half) {
    const BlockWeights weights = converted(
        span.architecture, adapted_half(span, *job.variant, half), half_of(half), span.compute);
    at::Tensor next = at::empty_like(held_out);
    int64_t first = 0;
    for (const int length : lengths) {
      const MicroBatch x{held_out.narrow(0, first, length), {length}};
      next.narrow(0, first, length)
          .copy_(forward_half(half, span.architecture, weights, span.rotary, x));
      first += length;
    }
    held_out = half_of(half) == Half::kMlp ? as_stored(span, next) : next;
  }
  StorableCheck check("held-out hidden states after half-block " +
                          std::to_string(job.halves.last - 1) + " of the adapted model",
                      span.architecture.dtype);
  check.add(held_out);
  check.require();
}

}  // namespace coppice
