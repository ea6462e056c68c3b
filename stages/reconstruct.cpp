#include "stages/reconstruct.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <stdexcept>

#include "stages/layer_similarity.h"  // is_removed
#include "stages/reconstruct/matrix_trainer.h"
#include "stages/reconstruct/window_cost.h"
#include "stages/reconstruct/window_trainer.h"

namespace coppice {
namespace {

std::string window_name(HalfRange halves) {
  const int num_blocks = halves.last_block() - halves.first_block();
  if (num_blocks > 1) return fmt::format("{} blocks", num_blocks);
  if (halves.last - halves.first > 1) return "block";
  return half_of(halves.first) == Half::kAttention ? "attention" : "mlp";
}

/// Norms of a layer that went act on where they come after it.
bool has_norm_after(const Architecture& architecture, Half half) {
  return std::any_of(architecture.norms.begin(), architecture.norms.end(), [&](const auto& norm) {
    return norm.half == half && norm.role.starts_with("after_");
  });
}

/// Of a window whose layers went or stayed as wholes: nothing is left that could be trained, or it
/// has the dense model's weights and reads what its targets are made of.
bool has_nothing_to_win(const WindowJob& job, const ReconstructOptions& options) {
  const PruneOptions& prune = job.variant->prune;
  if (prune.method != PruneMethod::kSimilarity) return false;
  bool is_trained = false, differs = false;
  for (int half = job.halves.first; half < job.halves.last; ++half) {
    const bool is_gone = is_removed(prune, half);
    const bool has_norm =
        options.train_norms && has_norm_after(job.span.architecture, half_of(half));
    is_trained = is_trained || !is_gone || has_norm;
    differs = differs || is_gone;
  }
  const bool has_own_targets = options.propagation == Propagation::kMixed;
  if (has_own_targets && !prune.removed_halves.empty()) {
    differs = differs || prune.removed_halves.front() < job.halves.first;
  }
  return !is_trained || !differs;
}

}  // namespace

Products Reconstruct::needs() const {
  const Products needs = Products::kMasks | Products::kBoundaries;
  if (!fits(options_)) return needs;
  return needs | Products::kGram | (folds_units(options_) ? Products::kSums : Products::kNone);
}

void Reconstruct::run(WindowJob& job) const {
  if (job.variant == nullptr) throw std::logic_error("reconstruct: the window has no variant");
  if (job.variant->masks.empty() && !trains_adamw(options_)) return;  // nothing is to be fitted
  if (has_nothing_to_win(job, options_)) return;
  const auto begin = std::chrono::steady_clock::now();
  const std::string window = window_name(job.halves);
  const std::string name = in_block(job.span.architecture, job.halves.first_block(), window);
  std::vector<WindowReport> reports;
  if (options_.window.kind == WindowKind::kMatrix) {
    reports = MatrixTrainer(job.span, job.halves.first, *job.variant, options_, name).run();
  } else {
    WindowReport& report = reports.emplace_back();
    report.halves = job.halves;
    report.name = window;
    WindowTrainer(job.span, job.halves, *job.variant, options_, name).run(reports.front());
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - begin;
  for (WindowReport& report : reports) {
    report.seconds = seconds.count() / static_cast<double>(reports.size());
    job.variant->windows.push_back(std::move(report));
  }
}

Cost Reconstruct::cost(const SpanShape& shape) const {
  if (shape.num_windows < 2) return {};  // run() refuses
  return options_.window.kind == WindowKind::kMatrix ? matrix_cost(shape, options_)
                                                     : window_cost(shape, options_);
}

}  // namespace coppice
