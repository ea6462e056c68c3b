#include "pipeline/unit_saliency_pass.h"

#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "pipeline/heap.h"
#include "pipeline/interrupt.h"
#include "pipeline/resident_tensors.h"
#include "stages/units/unit_saliency.h"

namespace coppice {
namespace {

namespace fs = std::filesystem;

int64_t element_bytes(at::ScalarType dtype) { return int64_t(c10::elementSize(dtype)); }

/// Of `windows` windows, in the device's dtypes.
Cost cost_of(const Architecture& architecture, int64_t windows, int64_t seqlen,
             const Device& device) {
  const at::ScalarType stored = scalar_type(architecture.dtype);
  const double element = double(element_bytes(device.compute_dtype(stored)));
  return unit_saliency_cost(architecture, windows, {1, seqlen, element, device.is_host()},
                            element_bytes(stored));
}

/// On the device's thread. What is resident is gone when it returns.
std::optional<NamedTensors> score_units(PassContext& context) {
  const TokenWindows& tokens = context.tokens;
  const Device& device = context.machine.device();
  const TraceSlice slice(context.trace, Track::kCompute, "unit scores");
  context.progress.expect(1);
  context.progress.now("scoring units: reading the model");
  const ResidentModel model = read_model(context.model, device);
  const at::Tensor ids = at::tensor(at::ArrayRef<int32_t>(tokens.ids), at::kLong)
                             .view({tokens.count(), tokens.seqlen})
                             .to(device.where());
  return unit_saliency(model, ids, [&](int64_t done) {
    context.progress.now(fmt::format("scoring units: {} of {} windows", done, tokens.count()));
    return InterruptGuard::requested();
  });
}

}  // namespace

bool wants_unit_saliency(const std::vector<Recipe>& recipes) {
  return std::any_of(recipes.begin(), recipes.end(), [](const Recipe& recipe) {
    return recipe.prune.method == PruneMethod::kSnip;
  });
}

ResidentBudget unit_saliency_budget(const SourceModel& model, int64_t seqlen,
                                    const ResourceOptions& resources, const Device& device,
                                    uint64_t process_bytes) {
  const Cost cost = cost_of(model.architecture, 1, seqlen, device);
  return resident_budget(
      model, {},
      {{"hidden states between blocks, one block's work", with_allocator(cost.bytes_held)}},
      resources, device, process_bytes);
}

std::string unit_saliency_refusal(const ResidentBudget& budget) {
  return refusal_of(
      budget,
      "prune.method: snip: it scores units with the whole model in memory, and this one does not "
      "fit",
      "flap and wanda_sp need no more than a few blocks; a smaller --seqlen takes less.");
}

fs::path unit_saliency_path(const fs::path& work) { return work / "unit_scores.safetensors"; }

std::optional<NamedTensors> unit_saliency_pass(PassContext& context) {
  const fs::path path = unit_saliency_path(context.work);
  if (context.state.has_unit_scores()) return read_tensors(path);
  limit_heap(context.plan.ram.limit, 0);  // of what is mapped later, nothing is yet
  const auto start = std::chrono::steady_clock::now();
  std::optional<NamedTensors> scores;
  context.machine.device().executor().run([&] { scores = score_units(context); });
  release_free_memory();
  if (!scores) return std::nullopt;
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : *scores) bytes += tensor.nbytes();
  FileRecord file;
  context.space.with_room(context.work, bytes, [&] { file = write_tensors(path, *scores); });
  context.space.with_room(context.work, 0, [&] { context.state.record_unit_scores(file); });
  const double seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  const Cost cost = cost_of(context.model.architecture, context.tokens.count(),
                            context.tokens.seqlen, context.machine.device());
  context.stage_totals["unit scores"] = {seconds, cost.flop()};
  context.progress.done(
      fmt::format("units scored by the loss of {} windows, the whole model in memory: {}",
                  context.tokens.count(), human_seconds(seconds)));
  return scores;
}

}  // namespace coppice
