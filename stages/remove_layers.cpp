#include "stages/remove_layers.h"

#include <ATen/ops/zeros_like.h>

#include <stdexcept>
#include <utility>

#include "stages/bitmask.h"
#include "stages/layer_similarity.h"  // is_removed

namespace coppice {

RemoveLayers::RemoveLayers(PruneOptions options, KeepMasks keep)
    : options_(std::move(options)), keep_(keep) {
  if (options_.method == PruneMethod::kSimilarity) return;
  throw std::invalid_argument("remove layers: this method removes weights or units");
}

Products RemoveLayers::gives() const {
  return keep_ == KeepMasks::kYes ? Products::kMasks : Products::kNone;
}

/// No hidden states. Held: masks, at a byte a weight.
Cost RemoveLayers::cost(const SpanShape& shape) const {
  const double stored = shape.architecture.dtype == "F32" ? 4 : 2;
  Cost cost;
  for (int half = shape.halves.first; half < shape.halves.last; ++half) {
    if (!options_.removed_halves.empty() && !is_removed(options_, half)) continue;
    for (const LinearSpec& linear : shape.architecture.linears) {
      if (linear.half != half_of(half)) continue;
      const auto weights = static_cast<double>(linear.out * linear.in);
      cost.bytes_touched += weights * (stored + 1);
      if (keep_ == KeepMasks::kYes) cost.bytes_held += weights;
    }
  }
  return cost;
}

void RemoveLayers::run(WindowJob& job) const {
  if (job.variant == nullptr) throw std::logic_error("prune: the window job has no variant");
  for (int half = job.halves.first; half < job.halves.last; ++half) {
    if (is_removed(options_, half)) remove(job.span, half, *job.variant);
  }
}

void RemoveLayers::remove(SpanJob& span, int half, Variant& variant) const {
  const auto zero = [&](const std::string& name, const at::Tensor& dense) {
    variant.room_for(name, dense).zero_();
    const at::Tensor mask = at::zeros_like(dense, at::TensorOptions(at::kBool));
    if (keep_ == KeepMasks::kYes) variant.masks[name] = mask;
    return mask;
  };
  for (const LinearSpec& spec : span.architecture.linears) {
    if (spec.half != half_of(half)) continue;
    const std::string name = in_block(span.architecture, half / 2, spec.name);
    const Linear& dense = span.dense_at(half).linears.at(spec.role);
    const std::string weight = name + ".weight";
    const at::Tensor mask = zero(weight, dense.weight);
    if (options_.export_masks) variant.bitmasks[weight] = pack_bitmask(mask);
    variant.linears.push_back({weight, "similarity", "layer", 1, dense.weight.numel(), ""});
    if (!dense.bias.defined()) continue;
    zero(name + ".bias", dense.bias);
    variant.mark_trained(name + ".bias");  // no linear of its own, and changed
  }
}

}  // namespace coppice
