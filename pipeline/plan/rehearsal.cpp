#include "pipeline/plan/rehearsal.h"

#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <utility>

#include "pipeline/plan/stage_time.h"
#include "pipeline/resident_boundaries.h"
#include "stages/propagation.h"
#include "stages/stage_table.h"
#include "stages/units/unit_layout.h"  // resize_units

namespace coppice {
namespace {

constexpr int64_t kMultiple = 64;  // of neurons
constexpr size_t kPasses = 4;
constexpr double kSmallestShare = 1e-3;             // of a block: no slice is smaller
constexpr int kLargestBatch = 4;                    // larger ones take no less a token
constexpr int64_t kCacheBytes = int64_t{32} << 20;  // written, they push weights out of most caches
constexpr double kHeldBytes = 32;  // of a weight, at the most: masters, moments, copies, masks

bool divides(const SparsityPattern& pattern, const Architecture& architecture) {
  if (pattern.is_unstructured()) return true;
  return std::all_of(architecture.linears.begin(), architecture.linears.end(),
                     [&](const LinearSpec& linear) { return linear.in % pattern.group_size == 0; });
}

double parameters_of(const Architecture& architecture) {
  double parameters = 0;
  for (const LinearSpec& linear : architecture.linears) {
    parameters += double(linear.in) * double(linear.out);
  }
  return parameters;
}

class Rehearsal {
 public:
  Rehearsal(const Device& device, Architecture slice, const Recipe& recipe, int windows,
            int64_t seqlen)
      : device_(device),
        slice_(std::move(slice)),
        recipe_(recipe),
        windows_(windows),
        seqlen_(seqlen),
        compute_(device.compute_dtype(scalar_type(slice_.dtype))),
        rotary_(make_rotary_table(slice_.rope, slice_.head_dim, seqlen, compute_, device.where())),
        boundaries_(windows, scalar_type(slice_.dtype), compute_),
        weights_(
            gather_block(slice_, 0, [this](const std::string& name) { return random(name); })) {
    const auto sink = boundaries_.sink({Stream::kDense, 0});
    for (int window = 0; window < windows_; ++window) {
      sink->write(window, at::randn({seqlen_, slice_.hidden}, options(at::kFloat)));
    }
  }

  StageWork work(const Stage& stage, const std::vector<HalfRange>& windows) const {
    return work_of(stage, windows, {slice_, {0, 2}, windows_, seqlen_, element_bytes()});
  }

  /// One pass over all stages; tells what of each took how long.
  template <typename Told>
  void pass(Told told) {
    SpanJob job{.halves = {0, 2},
                .architecture = slice_,
                .dense = {weights_},
                .compute = compute_,
                .rotary = rotary_,
                .boundaries = boundaries_,
                .statistics = {},
                .similarities = {},
                .variants = {}};
    Variant variant;
    variant.prune = recipe_.prune;
    variant.reconstruct = recipe_.reconstruct;
    const std::vector<HalfRange> whole = {{0, 2}};
    at::ones({kCacheBytes}, options(at::kByte));  // weights come from the disk, in no cache
    if (const auto forward = forward_stage(recipe_.prune, recipe_.reconstruct)) {
      told(*forward, whole, timed(*forward, job, whole[0], variant));
    }
    for (const HalfRange& window : windows_of({0, 2}, recipe_.reconstruct.window)) {
      for (const auto& stage : adapt_stages(recipe_.prune, recipe_.reconstruct)) {
        told(*stage, {window}, timed(*stage, job, window, variant));
      }
      variant.masks.clear();
    }
  }

 private:
  at::TensorOptions options(at::ScalarType dtype) const {
    return at::TensorOptions().dtype(dtype).device(device_.where());
  }
  int64_t element_bytes() const { return int64_t(c10::elementSize(compute_)); }

  at::Tensor random(const std::string& name) const {
    for (const NamedShape& tensor : block_tensors(slice_, 0)) {
      if (tensor.name != name) continue;
      const at::TensorOptions stored = options(scalar_type(slice_.dtype));
      if (tensor.shape.size() == 1) return at::ones(tensor.shape, stored);
      return at::randn(tensor.shape, stored).mul_(1 / std::sqrt(double(tensor.shape[1])));
    }
    throw std::logic_error("rehearsal: no tensor " + name);
  }

  double timed(const Stage& stage, SpanJob& job, HalfRange halves, Variant& variant) const {
    using Clock = std::chrono::steady_clock;
    WindowJob window{job, halves, &variant};
    device_.finish();
    const auto start = Clock::now();
    stage.run(window);
    device_.finish();
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  const Device& device_;
  Architecture slice_;
  Recipe recipe_;
  int windows_;
  int64_t seqlen_;
  at::ScalarType compute_;
  RotaryTable rotary_;
  ResidentBoundaries boundaries_;
  BlockWeights weights_;
};

/// Of all stages on a whole block.
double modelled_pass(const Architecture& architecture, const Recipe& recipe, int64_t windows,
                     int64_t seqlen, int64_t element_bytes, const Rates& rates) {
  const SpanShape shape{architecture, {0, 2}, windows, seqlen, element_bytes};
  double seconds = 0;
  if (const auto forward = forward_stage(recipe.prune, recipe.reconstruct)) {
    seconds += modelled_seconds(work_of(*forward, {{0, 2}}, shape), rates);
  }
  const auto parts = windows_of({0, 2}, recipe.reconstruct.window);
  for (const auto& stage : adapt_stages(recipe.prune, recipe.reconstruct)) {
    seconds += modelled_seconds(work_of(*stage, parts, shape), rates);
  }
  return seconds;
}

double held_bytes(const Architecture& slice, const Recipe& recipe, int64_t windows, int64_t seqlen,
                  int64_t element_bytes) {
  const SpanShape shape{slice, {0, 2}, windows, seqlen, element_bytes};
  const auto dense = forward_stage(recipe.prune, recipe.reconstruct);
  const Cost forward = dense ? work_of(*dense, {{0, 2}}, shape).cost : Cost{};
  double held = forward.bytes_held, kept = forward.bytes_kept;
  for (const auto& stage : adapt_stages(recipe.prune, recipe.reconstruct)) {
    const auto parts = windows_of({0, 2}, recipe.reconstruct.window);
    const Cost cost = work_of(*stage, parts, shape).cost;
    held = std::max(held, cost.bytes_held);
    kept = std::max(kept, cost.bytes_kept);
  }
  const double streams = propagates(recipe.reconstruct) ? 2 : 1;
  const double boundaries = 3.0 * streams * double(windows * seqlen * slice.hidden);  // elements
  const double weights = 2 * parameters_of(slice);  // dense and adapted
  return held + kept + 4 * (boundaries + weights) + double(kCacheBytes);
}

}  // namespace

Architecture slice_of(const Architecture& architecture, double share) {
  Architecture slice = architecture;
  const int64_t group = architecture.heads / architecture.kv_heads;
  const double kv_heads = double(architecture.kv_heads) * share;
  const int64_t heads_in_group = std::lround(double(group) * std::min(1.0, kv_heads));
  slice.kv_heads = std::clamp<int64_t>(std::lround(kv_heads), 1, architecture.kv_heads);
  slice.heads = slice.kv_heads * std::clamp<int64_t>(heads_in_group, 1, group);
  const auto tiles = int64_t(std::lround(double(architecture.ffn) * share / double(kMultiple)));
  slice.ffn = std::min(architecture.ffn, kMultiple * std::max<int64_t>(1, tiles));
  resize_units(slice);
  return slice;
}

std::vector<StageFactors> rehearse(const Device& device, const Architecture& architecture,
                                   const Recipe& recipe, int64_t windows, int64_t seqlen,
                                   const Rates& rates, const RehearsalLimits& limits) {
  Recipe one_step = recipe;
  one_step.reconstruct.epochs = 1;
  one_step.reconstruct.window.blocks = 1;  // what a token takes is not more in several
  // There are no masks of a slice, and which layers go is not known.
  if (one_step.prune.method == PruneMethod::kGiven ||
      one_step.prune.method == PruneMethod::kSimilarity) {
    one_step.prune.method = PruneMethod::kMagnitude;
  }
  if (one_step.prune.method == PruneMethod::kSnip) {  // nor scores of its units
    one_step.prune.method = PruneMethod::kMagnitudeSp;
  }
  one_step.prune.export_masks = false;
  one_step.reconstruct.batch_size = std::min(one_step.reconstruct.batch_size, kLargestBatch);
  const int few = int(std::clamp<int64_t>(windows, 2, one_step.reconstruct.batch_size + 1));
  const auto element =
      int64_t(c10::elementSize(device.compute_dtype(scalar_type(architecture.dtype))));
  const double whole = modelled_pass(architecture, one_step, few, seqlen, element, rates);
  double share = std::min({1.0, limits.seconds / whole,
                           double(limits.bytes) / kHeldBytes / parameters_of(architecture)});
  Architecture slice = slice_of(architecture, share);
  // A part of what is held does not shrink with the slice: down to the smallest one.
  for (; share > kSmallestShare &&
         held_bytes(slice, one_step, few, seqlen, element) > double(limits.bytes);
       share *= 0.8) {
    slice = slice_of(architecture, share);
  }
  // What a token takes is not less in a slice.
  if (!divides(recipe.prune.pattern, slice) ||
      modelled_pass(slice, one_step, few, seqlen, element, rates) > kPasses * limits.seconds ||
      held_bytes(slice, one_step, few, seqlen, element) > double(limits.bytes)) {
    return {};
  }
  Rehearsal rehearsal(device, std::move(slice), one_step, few, seqlen);
  std::vector<StageFactors> passes;
  double seconds = 0;
  while (passes.size() < kPasses && (passes.size() < 2 || seconds < kPasses * limits.seconds)) {
    StageFactors modelled, measured;
    rehearsal.pass([&](const Stage& stage, const std::vector<HalfRange>& parts, double taken) {
      modelled[std::string(stage.name())] += modelled_seconds(rehearsal.work(stage, parts), rates);
      measured[std::string(stage.name())] += taken;
      seconds += taken;
    });
    StageFactors factors;
    for (const auto& [stage, taken] : measured) {
      if (modelled[stage] > 0) factors[stage] = taken / modelled[stage];  // else: nothing to do
    }
    passes.push_back(std::move(factors));
  }
  passes.erase(passes.begin());  // touched new memory, had products choose and pack
  return passes;
}

StageFactors corrections_of(const std::vector<StageFactors>& passes) {
  StageFactors corrections;
  if (passes.empty()) return corrections;
  for (const auto& [stage, first] : passes.front()) {
    std::vector<double> factors;
    factors.reserve(passes.size());
    for (const StageFactors& pass : passes) factors.push_back(pass.at(stage));
    std::sort(factors.begin(), factors.end());
    const auto faster_half = long((factors.size() + 1) / 2);
    corrections[stage] =
        std::accumulate(factors.begin(), factors.begin() + faster_half, 0.0) / double(faster_half);
  }
  return corrections;
}

}  // namespace coppice
