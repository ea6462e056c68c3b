#include "pipeline/retrain_budget.h"

#include <algorithm>

#include "pipeline/errors.h"  // BudgetError
#include "pipeline/heap.h"
#include "pipeline/plan/plan_inputs.h"  // ram_limit
#include "pipeline/telemetry/process.h"
#include "stages/model/half_cost.h"
#include "stages/retrain/next_token_loss.h"

namespace coppice {
namespace {

// Resident beside what is counted, and freed pages that the allocator keeps: as in
// plan/planned_memory.cpp.
constexpr uint64_t kGrowthBytes = uint64_t{48} << 20;
constexpr double kAllocatorShare = 0.06;

uint64_t stored_bytes(const SourceModel& model) {
  uint64_t bytes = 0;
  for (const NamedShape& tensor : outer_tensors(model.architecture)) {
    bytes += model.checkpoint.tensor(tensor.name).bytes;
  }
  for (int block = 0; block < model.architecture.num_blocks; ++block) {
    for (const NamedShape& tensor : block_tensors(model.architecture, block)) {
      bytes += model.checkpoint.tensor(tensor.name).bytes;
    }
  }
  return bytes;
}

double trained_elements(const Architecture& architecture, const RetrainOptions& options) {
  double elements = 0;
  for (const LinearSpec& linear : architecture.linears) {
    elements += double(options.rank * (linear.out + linear.in)) + double(linear.out);
  }
  for (const NormSpec& norm : architecture.norms) elements += 2 * double(norm.size);
  return elements * double(architecture.num_blocks);
}

// A block in the backward sweep: effective weights and their gradients, one of them widened and
// masked, and what the forward kept for it, the gradients of activations replacing that one by one.
double block_bytes(const Architecture& architecture, double tokens, double element) {
  double weights = 0, kept = 0, widest = 0, largest = 0;
  for (const Half half : {Half::kAttention, Half::kMlp}) {
    const auto activations = double(kept_activations(architecture, half));
    weights += double(half_parameters(architecture, half));
    kept += activations;
    widest = std::max(widest, activations);
    largest = std::max(largest, double(largest_weight(architecture, half)));
  }
  return 2 * element * weights + 3 * 4 * largest + tokens * element * (kept + widest);
}

std::vector<PlanItem> model_items(const SourceModel& model, uint64_t image_bytes,
                                  const RetrainOptions& options, int64_t seqlen, double element) {
  const Architecture& architecture = model.architecture;
  const double tokens = double(options.training.batch_size) * double(seqlen);
  const double inputs =
      double(architecture.num_blocks + 2) * tokens * double(architecture.hidden) * element;
  const double head = next_token_loss_bytes(architecture.vocab, architecture.width_of_embedding(),
                                            int64_t(element));
  const double elements = trained_elements(architecture, options);
  // A saved state is read whole before it is taken over: value, two moments, the best.
  const double work = std::max({block_bytes(architecture, tokens, element), head,
                                2 * double(image_bytes), 3 * 4 * elements});
  // Value, two moments, the best so far, and the candidate that is judged.
  const double trained = 5 * 4 * elements;
  return {{"the model as it is stored", stored_bytes(model)},
          {"adapters, their moments, the best so far", uint64_t(trained)},
          {"hidden states between blocks", uint64_t(inputs)},
          {"work of one block, or of the head", uint64_t(work * (1 + kAllocatorShare))}};
}

}  // namespace

RetrainBudget retrain_budget(const SourceModel& model, const OutputDirectory& output,
                             const RetrainOptions& options, int64_t seqlen,
                             const ResourceOptions& resources, const Device& device) {
  release_free_memory();
  const uint64_t process = resident_bytes();
  const RamLimit limit = ram_limit(resources, process);
  const auto element =
      double(c10::elementSize(device.compute_dtype(scalar_type(model.architecture.dtype))));
  const uint64_t image = output.largest_image_bytes();
  const std::vector<PlanItem> items = model_items(model, image, options, seqlen, element);
  RetrainBudget budget;
  budget.ram = {
      "RAM",
      {{"program, libraries, threads", process + kGrowthBytes}, {"a shard to be written", image}},
      limit.bytes,
      limit.name};
  std::vector<PlanItem>& place = device.where().is_cpu() ? budget.ram.items : budget.device.items;
  place.insert(place.end(), items.begin(), items.end());
  budget.device.name = "device memory";
  const bool is_given = resources.vram_budget_bytes > 0;
  budget.device.limit = is_given ? resources.vram_budget_bytes : device.free_bytes();
  budget.device.limit_name = is_given ? "--vram-budget" : "free on the device";
  return budget;
}

void require_fits(const RetrainBudget& budget) {
  std::string text;
  for (const PlannedResource* resource : {&budget.ram, &budget.device}) {
    if (!resource->items.empty() && !resource->fits()) {
      text += "\n  " + complaint_about(*resource);
    }
  }
  if (text.empty()) return;
  throw BudgetError(
      "retraining holds the whole model in memory, and this one does not fit" + text +
      "\n  A smaller --batch-size or --seqlen takes less; coppice run needs no more than a few "
      "blocks.");
}

}  // namespace coppice
