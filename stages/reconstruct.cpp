#include "stages/reconstruct.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>

#include "stages/layer_similarity.h"  // is_removed
#include "stages/model/half_cost.h"
#include "stages/reconstruct/keep_best.h"
#include "stages/reconstruct/least_squares.h"
#include "stages/reconstruct/liar.h"
#include "stages/reconstruct/matrix_trainer.h"
#include "stages/reconstruct/window_trainer.h"
#include "stages/units/unit_layout.h"  // reads_units

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
  if (options_.window.kind == WindowKind::kMatrix) return matrix_cost(shape, options_);
  const auto [training, evaluated, evaluations, steps, batch] =
      passes_of(options_, shape.num_windows, shape.seqlen);
  const Architecture& architecture = shape.architecture;
  const double seqlen = static_cast<double>(shape.seqlen);
  const double epochs = trains_adamw(options_) ? options_.epochs : 0;
  const auto fits = static_cast<double>(ridges_of(options_).size());
  const double element = static_cast<double>(shape.compute_bytes);
  const double stored = architecture.dtype == "F32" ? 4 : 2;
  const double hidden = static_cast<double>(architecture.hidden);
  double states = 0, gradients = 0, gain_gradient = 0, evaluating = 0, fitting = 0;  // bytes
  double kept = 0, widest = 0;  // elements a token: of all halves, of one
  Cost cost;
  for (int half = shape.halves.first; half < shape.halves.last; ++half) {
    const Half kind = half_of(half);
    const double first =
        half == shape.halves.first ? first_linear_flop(architecture, kind, training) : 0;
    const double parameters = static_cast<double>(half_parameters(architecture, kind));
    const TouchedElements touched = touched_activations(architecture, kind);
    // Backward: twice the forward's products, two and a half times its attention (scores again).
    cost.product_flop += linear_flop(architecture, kind, 3 * training + evaluated) - first;
    cost.attention_flop += attention_flop(architecture, kind, 3.5 * training + evaluated, seqlen);
    cost.bytes_touched +=
        element * (training * (touched.forward + touched.backward) + evaluated * touched.forward);
    const bool is_recomputed =
        shape.kept_activations == KeptActivations::kOfOneHalf && half + 1 < shape.halves.last;
    if (is_recomputed) {
      cost.product_flop += linear_flop(architecture, kind, training);
      cost.attention_flop += attention_flop(architecture, kind, training, seqlen);
      cost.bytes_touched += element * training * touched.forward;
    }
    // A step reads master, moments, mask and gradient, writes master and moments and the copy that
    // products read; the gradient was written and scaled by the gain.
    cost.bytes_touched += steps * parameters * (3 * 4 + 1 + 3 * 4 + 4 * element);
    cost.bytes_touched += evaluations * parameters * (4 + 2 * stored + element);
    states +=
        parameters * ((epochs > 0 ? 3 : 1) * 4 + 1 + (shape.compute_bytes == 4 ? 0 : element));
    gradients += parameters * element;
    gain_gradient =
        std::max(gain_gradient, static_cast<double>(largest_weight(architecture, kind)) * element);
    // Rounded as they will be written, and widened again; the best so far.
    const double widened = element == stored ? 0 : element;
    evaluating += parameters * (stored + widened + (epochs > 1 || fits > 1 ? stored : 0));
    for (const LinearSpec& linear : architecture.linears) {
      if (fits == 0 || linear.half != kind) continue;
      const bool folds = folds_units(options_);
      if (folds && !reads_units(architecture, linear)) continue;  // at most, all are kept
      cost.product_flop += fits * (folds ? fold_flop(linear.out, linear.in, linear.in)
                                         : least_squares_flop(linear.out, linear.in));
      // The result in fp32, as it will be written, and the opposite of the mask.
      const double result = static_cast<double>(linear.out * linear.in) * (4 + stored + 1);
      const double at_work = folds ? fold_bytes(linear.out, linear.in, linear.in)
                                   : least_squares_bytes(linear.out, linear.in);
      fitting = std::max(fitting, at_work + result);
    }
    kept += static_cast<double>(kept_activations(architecture, kind));
    widest = std::max(widest, static_cast<double>(kept_activations(architecture, kind)));
  }
  if (options_.propagation == Propagation::kSparse) {  // the dense window makes the targets
    for (int half = shape.halves.first; half < shape.halves.last; ++half) {
      const Half kind = half_of(half);
      cost.product_flop += linear_flop(architecture, kind, training + evaluated);
      cost.attention_flop += attention_flop(architecture, kind, training + evaluated, seqlen);
      cost.bytes_touched +=
          element * (training + evaluated) * touched_activations(architecture, kind).forward;
      if (element != stored) {
        states += static_cast<double>(half_parameters(architecture, kind)) * element;
      }
    }
  }
  // Inputs and targets, read and converted; the error and its gradient.
  cost.bytes_touched += (training + evaluated) * hidden * (2 * (stored + element) + 3 * element);
  // Inputs of all halves but the first, and of one what it keeps.
  if (shape.kept_activations == KeptActivations::kOfOneHalf) {
    kept = hidden * static_cast<double>(shape.halves.last - shape.halves.first - 1) + widest;
  }
  // The gradients of activations replace them one by one: twice the widest of them, and the rest.
  const double train_held =
      epochs > 0 ? gradients + gain_gradient + batch * element * (kept + widest) : 0;
  const double fit_held = fits > 0 ? evaluating + fitting : 0;
  cost.bytes_held =
      states + std::max({train_held, fit_held, evaluating + batch * element * widest});
  cost.bytes_moved = 2 * (training + evaluated) * hidden * stored;
  return cost;
}

}  // namespace coppice
