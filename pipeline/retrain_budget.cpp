#include "pipeline/retrain_budget.h"

#include <algorithm>

#include "stages/model/half_cost.h"
#include "stages/reconstruct.h"  // num_held_out
#include "stages/retrain/next_token_loss.h"

namespace coppice {
namespace {

constexpr uint64_t kTokenBytes = 4 + 8;  // as it is read, and as the embedding wants its index

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
double block_bytes(const Architecture& architecture, const BatchShape& batch) {
  double weights = 0, kept = 0, passing = 0, largest = 0;
  for (const Half half : {Half::kAttention, Half::kMlp}) {
    weights += double(half_parameters(architecture, half));
    kept += kept_bytes(architecture, half, batch);
    passing = std::max(passing, passing_bytes(architecture, half, batch));
    largest = std::max(largest, double(largest_weight(architecture, half)));
  }
  return 2 * batch.element * weights + 3 * 4 * largest + kept + passing;
}

// A batch, or all there is to train on or to judge by.
int64_t sequences_at_once(const ReconstructOptions& training, int64_t windows) {
  const int64_t held_out = num_held_out(training.validation_fraction, int(windows));
  return std::min<int64_t>(training.batch_size, std::max(windows - held_out, held_out));
}

std::vector<PlanItem> work_items(const Architecture& architecture, uint64_t image_bytes,
                                 const RetrainOptions& options, const BatchShape& batch) {
  const double tokens = batch.sequences * double(batch.seqlen);
  const double inputs =
      double(architecture.num_blocks + 2) * tokens * double(architecture.hidden) * batch.element;
  const double head = next_token_loss_bytes(
      batch.seqlen, architecture.vocab, architecture.width_of_embedding(), int64_t(batch.element));
  const double elements = trained_elements(architecture, options);
  // A saved state is read whole before it is taken over: value, two moments, the best.
  const double work =
      std::max({block_bytes(architecture, batch), head, 2 * double(image_bytes), 3 * 4 * elements});
  // Value, two moments, the best so far, and the candidate that is judged.
  const double trained = 5 * 4 * elements;
  return {{"adapters, their moments, the best so far", uint64_t(trained)},
          {"hidden states between blocks", uint64_t(inputs)},
          {"work of one block, or of the head", with_allocator(work)}};
}

}  // namespace

RetrainBudget retrain_budget(const SourceModel& model, const OutputDirectory& output,
                             const RetrainOptions& options, int64_t seqlen,
                             const ResourceOptions& resources, const Device& device,
                             int64_t windows) {
  const at::ScalarType compute = device.compute_dtype(scalar_type(model.architecture.dtype));
  const BatchShape batch{double(sequences_at_once(options.training, windows)), seqlen,
                         double(c10::elementSize(compute)), device.is_host()};
  const uint64_t image = output.largest_image_bytes();
  const std::vector<PlanItem> host = {{"a shard to be written", image},
                                      {"tokens", uint64_t(windows * seqlen) * kTokenBytes}};
  return resident_budget(model, host, work_items(model.architecture, image, options, batch),
                         resources, device);
}

void require_fits(const RetrainBudget& budget) {
  require_fits(budget, "retraining holds the whole model in memory, and this one does not fit",
               "A smaller --batch-size or --seqlen takes less; coppice run needs no more than a "
               "few blocks.");
}

}  // namespace coppice
