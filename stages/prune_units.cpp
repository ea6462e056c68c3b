#include "stages/prune_units.h"

#include <ATen/TensorOperators.h>
#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "stages/bitmask.h"
#include "stages/finite.h"  // share_of_zeros
#include "stages/units/targeted_units.h"
#include "stages/units/unit_scores.h"

namespace coppice {
namespace {

std::string_view method_name(PruneMethod method) {
  switch (method) {
    case PruneMethod::kRandomSp:
      return "random_sp";
    case PruneMethod::kMagnitudeSp:
      return "magnitude_sp";
    case PruneMethod::kWandaSp:
      return "wanda_sp";
    case PruneMethod::kFlap:
      return "flap";
    case PruneMethod::kSnip:
      return "snip";
    default:
      throw std::invalid_argument("prune units: this method removes single weights");
  }
}

std::vector<const LinearSpec*> linears_of(const UnitLayout& units) {
  std::vector<const LinearSpec*> linears = units.producers;
  linears.insert(linears.end(), units.shared.begin(), units.shared.end());
  linears.push_back(units.consumer);
  return linears;
}

/// Zeroes what is not kept of one tensor, in room of the variant.
void write_kept(const std::string& name, const at::Tensor& dense, const at::Tensor& mask,
                KeepMasks keep, Variant& variant) {
  at::Tensor& pruned = variant.room_for(name, dense);
  pruned.copy_(dense).add_(0).masked_fill_(mask.logical_not(), 0);
  if (keep == KeepMasks::kYes) variant.masks[name] = mask;
}

/// The units of one consumer at work.
class UnitsAtWork {
 public:
  UnitsAtWork(const PruneOptions& options, KeepMasks keep, SpanJob& span, int half,
              Variant& variant)
      : options_(options), keep_(keep), span_(span), half_(half), variant_(variant) {}

  void prune(const UnitLayout& units, double sparsity) {
    const Linear& consumer = dense(*units.consumer);
    scored_ = score_units(span_, half_, units, options_, variant_.unit_scores);
    const at::Tensor kept = kept_units(scored_.scores, sparsity, units, options_.head_units);
    variant_.kept_units[name(*units.consumer)] = kept;
    const at::Device where = consumer.weight.device();
    const at::Tensor rows = kept_rows(kept, units).to(where);
    for (const LinearSpec* producer : units.producers) prune_rows(units, *producer, rows);
    if (!units.shared.empty()) {
      const at::Tensor shared = kept_shared_rows(kept, units).to(where);
      for (const LinearSpec* linear : units.shared) prune_rows(units, *linear, shared);
    }
    prune_weight(units, *units.consumer, rows.unsqueeze(0));
  }

 private:
  const Linear& dense(const LinearSpec& spec) const {
    return span_.dense_at(half_).linears.at(spec.role);
  }
  std::string name(const LinearSpec& spec) const {
    return in_block(span_.architecture, half_ / 2, spec.name);
  }

  void prune_rows(const UnitLayout& units, const LinearSpec& spec, const at::Tensor& rows) {
    prune_weight(units, spec, rows.unsqueeze(1));
    const at::Tensor& bias = dense(spec).bias;
    if (!bias.defined()) return;
    write_kept(name(spec) + ".bias", bias, rows, keep_, variant_);
    variant_.mark_trained(name(spec) + ".bias");  // no linear of its own, and changed
  }

  /// `kept` is a column or a row of the mask.
  void prune_weight(const UnitLayout& units, const LinearSpec& spec, const at::Tensor& kept) {
    const std::string tensor = name(spec) + ".weight";
    const at::Tensor& weight = dense(spec).weight;
    const at::Tensor mask = kept.expand(weight.sizes()).contiguous();
    write_kept(tensor, weight, mask, keep_, variant_);
    variant_.linears.push_back({tensor, std::string(method_name(scored_.method)),
                                name_of(units.kind), share_of_zeros(variant_.adapted.at(tensor)),
                                weight.numel(), scored_.fallback});
    if (options_.export_masks) variant_.bitmasks[tensor] = pack_bitmask(mask);
  }

  const PruneOptions& options_;
  KeepMasks keep_;
  SpanJob& span_;
  int half_;
  Variant& variant_;
  ScoredUnits scored_;  // the units at work
};

}  // namespace

PruneUnits::PruneUnits(PruneOptions options, KeepMasks keep)
    : options_(std::move(options)), keep_(keep) {
  method_name(options_.method);
}

Products PruneUnits::needs() const {
  switch (options_.method) {
    case PruneMethod::kWandaSp:
      return Products::kStatistics;
    case PruneMethod::kFlap:
      return Products::kStatistics | Products::kSums;
    default:
      return Products::kNone;
  }
}

Products PruneUnits::gives() const {
  return keep_ == KeepMasks::kYes ? Products::kMasks : Products::kNone;
}

/// No hidden states. Held: the masks that are kept, or the largest and its opposite; the consumer
/// in fp64 and a power of it.
Cost PruneUnits::cost(const SpanShape& shape) const {
  Cost cost;
  int64_t masked = 0, largest = 0;
  for (int half = shape.halves.first; half < shape.halves.last; ++half) {
    for (const auto& [units, sparsity] : targeted_units(shape.architecture, half, options_)) {
      if (sparsity <= 0) continue;
      for (const LinearSpec* linear : linears_of(units)) {
        masked += linear->out * linear->in;
        largest = std::max(largest, linear->out * linear->in);
      }
    }
  }
  // Copied, masked, the mask made and counted; the consumer's columns are summed.
  cost.bytes_touched = 24.0 * static_cast<double>(masked);
  const int64_t masks = keep_ == KeepMasks::kYes ? masked : largest;
  cost.bytes_held = static_cast<double>(masks + largest * (1 + 2 * 8));
  return cost;
}

void PruneUnits::run(WindowJob& job) const {
  if (job.variant == nullptr) throw std::logic_error("prune: the window job has no variant");
  for (int half = job.halves.first; half < job.halves.last; ++half) {
    UnitsAtWork work(options_, keep_, job.span, half, *job.variant);
    for (const auto& [units, sparsity] : targeted_units(job.span.architecture, half, options_)) {
      if (sparsity > 0) work.prune(units, sparsity);
    }
  }
}

}  // namespace coppice
