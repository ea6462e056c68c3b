#include "pipeline/span_work.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <optional>

#include "stages/model/block_scales.h"  // FP8
#include "stages/model/stem.h"

namespace coppice {

SpanWork& work_of(GraphSpan& span) { return *static_cast<SpanWork*>(span.work.get()); }

void plan_span(GraphSpan& span, const ModelSpans& spans, const ModelSpan& what) {
  auto work = std::make_shared<SpanWork>();
  work->span = what;
  span.name = what.name;
  work->reads = spans.reads_of(what);
  span.plan = work->reads.plan;
  span.files = spans.files();
  span.work = work;
}

namespace {

const SpanReads& reads_of(const GraphSpan& span) {
  return static_cast<const SpanWork*>(span.work.get())->reads;
}

std::span<std::byte> placed(const GraphSpan& span, size_t index) {
  const Placement& placement = span.plan.placements[index];
  return span.slot.subspan(placement.slot_offset, placement.bytes);
}

}  // namespace

at::Tensor slot_tensor(const GraphSpan& span, const SourceModel& model, const Device& device,
                       const std::string& name) {
  if (const std::optional<int64_t> size = added_bias(model.architecture, name)) {
    return at::zeros(
        {*size}, at::TensorOptions(scalar_type(model.architecture.dtype)).device(device.where()));
  }
  const TensorInfo& info = model.checkpoint.tensor(name);
  const std::span<std::byte> bytes = placed(span, reads_of(span).placement_of.at(name));
  std::vector<int64_t> shape = info.shape;
  // A chunk of the head holds some of the rows, of positions as many as windows are long.
  if (bytes.size() < info.bytes)
    shape[0] = int64_t(bytes.size() / (info.bytes / uint64_t(shape[0])));
  if (info.dtype != kFp8) return device.view(bytes, shape, scalar_type(info.dtype));
  return widened_fp8(device.view(bytes, shape, at::kFloat8_e4m3fn),
                     slot_tensor(span, model, device, scales_name(name)),
                     model.architecture.scale_block);
}

void give_masks(const GraphSpan& span, const MaskSource& masks, const Device& device,
                Variant& variant) {
  for (const auto& [linear, index] : reads_of(span).mask_placement_of) {
    const TensorInfo& info = masks.checkpoint().tensor(masks.tensor_for(linear));
    const at::ScalarType dtype = info.dtype == "U8" ? at::kByte : scalar_type(info.dtype);
    variant.given_masks[linear + ".weight"] = device.view(placed(span, index), info.shape, dtype);
  }
}

void embed_windows(const GraphSpan& span, const SourceModel& model, const TokenWindows& tokens,
                   const Device& device, ActivationSink& sink) {
  const ModelSpan& what = static_cast<const SpanWork*>(span.work.get())->span;
  const auto dtype = scalar_type(model.checkpoint.tensor(model.architecture.embedding).dtype);
  const std::map<int32_t, size_t>& placement_of = reads_of(span).placement_of_token;
  const at::ScalarType compute = device.compute_dtype(scalar_type(model.architecture.dtype));
  const StemWeights stem = gather_stem(model.architecture, [&](const std::string& name) {
    return slot_tensor(span, model, device, name).to(compute);
  });
  for (int64_t window = what.first; window < what.last; ++window) {
    std::map<int32_t, int64_t> row_of;
    std::vector<at::Tensor> rows;  // [hidden] each, the distinct tokens of this window
    std::vector<int64_t> index;
    for (const int32_t token : tokens.window(window)) {
      const auto [found, is_new] = row_of.emplace(token, int64_t(rows.size()));
      if (is_new) {
        rows.push_back(device.view(placed(span, placement_of.at(token)),
                                   {model.architecture.width_of_embedding()}, dtype));
      }
      index.push_back(found->second);
    }
    const at::Tensor order = at::tensor(index, at::kLong).to(device.where());
    const at::Tensor embedded = at::stack(rows).index_select(0, order);
    std::vector<at::Tensor> sequences;  // positions begin anew with each
    int64_t first = 0;
    for (const int length : tokens.lengths_of(window)) {
      sequences.push_back(embed(model.architecture, stem, embedded.narrow(0, first, length)));
      first += length;
    }
    sink.write(int(window), sequences.size() == 1 ? sequences.front() : at::cat(sequences));
  }
}

void start_job(GraphSpan& span, const SourceModel& model, const Device& device,
               const RotaryTable& rotary, Boundaries& boundaries, std::vector<Variant> variants,
               Targets targets) {
  SpanWork& work = work_of(span);
  if (targets == Targets::kRecomputed) {
    work.recomputed = std::make_unique<RecomputedBoundaries>(boundaries);
  }
  const auto tensor = [&](const std::string& name) {
    return slot_tensor(span, model, device, name);
  };
  std::vector<BlockWeights> dense;
  for (int block = work.span.first_block; block < work.span.last_block; ++block) {
    dense.push_back(gather_block(model.architecture, block, tensor));
  }
  work.job = std::unique_ptr<SpanJob>(
      new SpanJob{.halves = {2 * work.span.first_block, 2 * work.span.last_block},
                  .architecture = model.architecture,
                  .dense = std::move(dense),
                  .compute = device.compute_dtype(scalar_type(model.architecture.dtype)),
                  .rotary = rotary,
                  .boundaries = work.recomputed ? *work.recomputed : boundaries,
                  .statistics = {},
                  .similarities = {},
                  .variants = std::move(variants)});
  if (work.recomputed) work.recomputed->set_job(*work.job);
}

}  // namespace coppice
