#include "stages/reconstruct.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "stages/model/half_cost.h"
#include "stages/reconstruct/window_trainer.h"

namespace coppice {
namespace {

std::string window_name(HalfRange halves) {
  if (halves.last - halves.first > 1) return "block";
  return half_of(halves.first) == Half::kAttention ? "attention" : "mlp";
}

}  // namespace

void Reconstruct::run(WindowJob& job) const {
  if (job.variant == nullptr) throw std::logic_error("reconstruct: the window has no variant");
  const auto begin = std::chrono::steady_clock::now();
  Variant& variant = *job.variant;
  WindowReport report;
  report.name = window_name(job.halves);
  const std::string name = in_block(job.span.architecture, job.halves.first_block(), report.name);
  WindowTrainer trainer(job.span, job.halves, variant, options_, name);
  const std::optional<std::vector<at::Tensor>> best = trainer.train(report);
  if (best) {
    for (size_t i = 0; i < best->size(); ++i) variant.adapted[trainer.names()[i]] = (*best)[i];
    variant.trained.insert(variant.trained.end(), trainer.names().begin(), trainer.names().end());
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  report.seconds = seconds.count();
  variant.windows.push_back(std::move(report));
}

Cost Reconstruct::cost(const SpanShape& shape) const {
  const int windows = static_cast<int>(shape.num_windows);
  if (windows < 2) return {};  // run() refuses
  const int held_out = num_held_out(options_, windows);
  const double seqlen = static_cast<double>(shape.seqlen);
  const double training = options_.epochs * static_cast<double>(windows - held_out) * seqlen;
  // Before and after each epoch on the held-out windows; before and after on as many training ones.
  const double reported = std::min(held_out, windows - held_out);
  const double evaluated = ((1.0 + options_.epochs) * held_out + 2 * reported) * seqlen;
  const double element = static_cast<double>(shape.compute_bytes);
  const double batch = options_.batch_size * seqlen;
  Cost cost;
  for (int half = shape.halves.first; half < shape.halves.last; ++half) {
    const Architecture& architecture = shape.architecture;
    const Half kind = half_of(half);
    const double first =
        half == shape.halves.first ? first_linear_flop(architecture, kind, training) : 0;
    const double parameters = static_cast<double>(half_parameters(architecture, kind));
    // Backward: twice the forward's products, two and a half times its attention (scores again).
    cost.flop += linear_flop(architecture, kind, 3 * training + evaluated) - first +
                 attention_flop(architecture, kind, 3.5 * training + evaluated, seqlen);
    // Master, two moments, mask; gradient; the compute copy, unless it is the master; the best
    // state.
    const double copies = shape.compute_bytes == 4 ? element : 2 * element;
    cost.bytes_held += parameters * (4 + 4 + 4 + 1 + copies + element);
    cost.bytes_held +=
        batch * element * 2 * static_cast<double>(kept_activations(architecture, kind));
  }
  cost.bytes_moved =
      2 * (training + evaluated) * static_cast<double>(shape.architecture.hidden) * element;
  return cost;
}

}  // namespace coppice
