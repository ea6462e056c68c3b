#include "stages/propagate.h"

#include <ATen/core/grad_mode.h>

#include <numeric>
#include <stdexcept>

#include "stages/calibrate.h"  // cost of a forward pass
#include "stages/finite.h"
#include "stages/model/block_forward.h"

namespace coppice {

BlockWeights adapted_half(const SpanJob& span, const Variant& variant, int half) {
  const Architecture& architecture = span.architecture;
  BlockWeights weights = span.dense_at(half);
  const auto replace = [&](const std::string& name, at::Tensor& tensor) {
    const auto adapted = variant.adapted.find(name);
    if (adapted != variant.adapted.end()) tensor = adapted->second;
  };
  for (const LinearSpec& spec : architecture.linears) {
    if (spec.half != half_of(half)) continue;
    const std::string name = in_block(architecture, half / 2, spec.name);
    replace(name + ".weight", weights.linears.at(spec.role).weight);
    replace(name + ".bias", weights.linears.at(spec.role).bias);
  }
  for (const NormSpec& spec : architecture.norms) {
    if (spec.half != half_of(half)) continue;
    const std::string name = in_block(architecture, half / 2, spec.name);
    replace(name + ".weight", weights.norms.at(spec.role).gain);
    replace(name + ".bias", weights.norms.at(spec.role).bias);
  }
  return weights;
}

Cost Propagate::cost(const SpanShape& shape) const {
  return Calibrate({.stream = Stream::kPropagated}).cost(shape);
}

void Propagate::run(WindowJob& job) const {
  if (job.variant == nullptr) throw std::logic_error("propagate: the window job has no variant");
  const at::NoGradGuard no_graph;
  SpanJob& span = job.span;
  for (int half = job.halves.first; half < job.halves.last; ++half) {  // no dense forward looks
    if (half_of(half) == Half::kMlp) continue;
    require_finite(span.architecture, half / 2, span.dense_at(half));
  }
  const std::unique_ptr<ActivationSink> sink =
      span.boundaries.sink({Stream::kPropagated, job.halves.last});
  if (!sink) return;
  std::vector<BlockWeights> weights;
  for (int half = job.halves.first; half < job.halves.last; ++half) {
    weights.push_back(converted(span.architecture, adapted_half(span, *job.variant, half),
                                half_of(half), span.compute));
  }
  const auto inputs = span.boundaries.source(entering(Stream::kPropagated, job.halves.first));
  std::vector<int> order(static_cast<size_t>(inputs->num_windows()));
  std::iota(order.begin(), order.end(), 0);
  inputs->announce(order);
  StorableCheck check("hidden states of the adapted model, " +
                          to_string(Boundary{Stream::kPropagated, job.halves.last}),
                      span.architecture.dtype);
  for (const int window : order) {
    MicroBatch x = inputs->read({&window, 1});
    for (int half = job.halves.first; half < job.halves.last; ++half) {
      x.hidden =
          forward_half(half, span.architecture,
                       weights[static_cast<size_t>(half - job.halves.first)], span.rotary, x);
    }
    check.add(x.hidden);
    if (window == order.back()) check.require();  // a boundary that lacks one is not durable
    sink->write(window, x.hidden);
  }
}

}  // namespace coppice
