#include "stages/reconstruct/window_loss.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "stages/model/block_forward.h"
#include "stages/propagation.h"
#include "stages/recomputed_source.h"
#include "stages/reconstruct/loss.h"

namespace coppice {

at::Tensor window_output(const SpanJob& span, HalfRange halves, const WindowBlocks& weights,
                         MicroBatch x) {
  for (int half = halves.first; half < halves.last; ++half) {
    x.hidden = forward_half(half, span.architecture, weights.at(half / 2), span.rotary, x);
  }
  return std::move(x.hidden);
}

void WindowData::announce(std::span<const int> order) {
  inputs->announce(order);
  targets->announce(order);
}

WindowData window_data(const SpanJob& span, HalfRange halves, const ReconstructOptions& options) {
  const Boundary first = entering(input_stream(options), halves.first);
  const auto inputs = [&] { return span.boundaries.source(first); };
  if (options.propagation != Propagation::kSparse) {
    return {inputs(), span.boundaries.source({Stream::kDense, halves.last})};
  }
  return {inputs(), std::make_unique<RecomputedSource>(span, halves, inputs())};
}

double mean_loss(const SpanJob& span, HalfRange halves, const WindowBlocks& weights,
                 WindowData& data, std::span<const int> windows,
                 const ReconstructOptions& options) {
  const at::NoGradGuard no_graph;
  data.announce(windows);
  at::Tensor sum;  // read once: asking a GPU for every batch would stall it
  double terms = 0;
  const size_t step = static_cast<size_t>(options.batch_size);
  for (size_t first = 0; first < windows.size(); first += step) {
    const auto batch = windows.subspan(first, std::min(step, windows.size() - first));
    const at::Tensor output = window_output(span, halves, weights, data.inputs->read(batch));
    const at::Tensor more = loss_sum(options.loss, output, data.targets->read(batch).hidden);
    sum = sum.defined() ? sum.add_(more) : more;
    terms += loss_terms(options.loss, output);
  }
  return sum.defined() ? sum.item<double>() / terms : NAN;
}

}  // namespace coppice
