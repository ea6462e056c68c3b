#include "stages/reconstruct/window_cost.h"

#include <algorithm>

#include "stages/model/half_cost.h"
#include "stages/reconstruct/keep_best.h"
#include "stages/reconstruct/least_squares.h"
#include "stages/reconstruct/liar.h"
#include "stages/units/unit_layout.h"  // reads_units

namespace coppice {
namespace {

double stored_bytes(const Architecture& architecture) {
  return architecture.dtype == "F32" ? 4 : 2;  // of one element
}

BatchShape batch_of(const SpanShape& shape, double tokens) {
  return {tokens / static_cast<double>(shape.seqlen), shape.seqlen,
          static_cast<double>(shape.compute_bytes), shape.is_host};
}

/// Sums over the halves of one window.
class WindowCost {
 public:
  WindowCost(const SpanShape& shape, const ReconstructOptions& options)
      : shape_(shape),
        architecture_(shape.architecture),
        options_(options),
        passes_(passes_of(options, shape.num_windows, shape.seqlen)),
        fits_(static_cast<double>(ridges_of(options).size())),
        is_trained_(trains_adamw(options) && options.epochs > 0) {}

  Cost sum() const {
    Cost cost;
    for (int half = shape_.halves.first; half < shape_.halves.last; ++half) {
      const Half kind = half_of(half);
      add_passes(half, cost);
      add_steps(kind, cost);
      add_fits(kind, cost);
      if (options_.propagation == Propagation::kSparse) {  // the dense window makes the targets
        add_forward(kind, passes_.training + passes_.evaluated, cost);
      }
    }
    // Inputs and targets, read and converted; the error and its gradient.
    const double entering = (passes_.training + passes_.evaluated) * hidden();
    cost.bytes_touched += entering * (2 * (stored_ + element_) + 3 * element_);
    cost.bytes_moved = 2 * entering * stored_;
    cost.bytes_held = bytes_held();
    return cost;
  }

 private:
  double hidden() const { return static_cast<double>(architecture_.hidden); }
  double parameters(Half half) const {
    return static_cast<double>(half_parameters(architecture_, half));
  }

  void add_forward(Half half, double tokens, Cost& cost) const {
    const auto seqlen = static_cast<double>(shape_.seqlen);
    cost.product_flop += linear_flop(architecture_, half, tokens);
    cost.attention_flop += attention_flop(architecture_, half, tokens, seqlen);
    cost.bytes_touched += element_ * tokens * touched_activations(architecture_, half).forward;
  }

  void add_passes(int half, Cost& cost) const {
    const Half kind = half_of(half);
    add_forward(kind, passes_.training + passes_.evaluated, cost);
    // Back: twice the forward's products, but for the inputs of the window, and two and a half
    // times its attention (scores again).
    const auto seqlen = static_cast<double>(shape_.seqlen);
    cost.product_flop += linear_flop(architecture_, kind, 2 * passes_.training);
    if (half == shape_.halves.first) {
      cost.product_flop -= first_linear_flop(architecture_, kind, passes_.training);
    }
    cost.attention_flop += attention_flop(architecture_, kind, 2.5 * passes_.training, seqlen);
    cost.bytes_touched +=
        element_ * passes_.training * touched_activations(architecture_, kind).backward;
    const bool is_recomputed =
        shape_.kept_activations == KeptActivations::kOfOneHalf && half + 1 < shape_.halves.last;
    if (is_recomputed) add_forward(kind, passes_.training, cost);
  }

  // A step reads master, moments, mask and gradient, writes master and moments and the copy that
  // products read; the gradient was written and scaled by the gain.
  void add_steps(Half half, Cost& cost) const {
    cost.bytes_touched += passes_.steps * parameters(half) * (3 * 4 + 1 + 3 * 4 + 4 * element_);
    cost.bytes_touched += passes_.evaluations * parameters(half) * (4 + 2 * stored_ + element_);
  }

  bool is_fitted(const LinearSpec& linear) const {
    if (fits_ == 0) return false;
    return !folds_units(options_) || reads_units(architecture_, linear);
  }

  // Of what folds, at most: all is kept.
  void add_fits(Half half, Cost& cost) const {
    for (const LinearSpec& linear : architecture_.linears) {
      if (linear.half != half || !is_fitted(linear)) continue;
      cost.product_flop +=
          fits_ * (folds_units(options_) ? fold_flop(linear.out, linear.in, linear.in)
                                         : least_squares_flop(linear.out, linear.in));
    }
  }

  double bytes_held() const {
    const bool has_best = (is_trained_ && options_.epochs > 1) || fits_ > 1;
    double states = 0, training = 0, fitting = 0, evaluating = 0;
    for (int half = shape_.halves.first; half < shape_.halves.last; ++half) {
      const Half kind = half_of(half);
      states += parameters(kind) * (bytes_of_state() + (has_best ? stored_ : 0));
      // Rounded as they will be written, and widened again.
      evaluating += parameters(kind) * (stored_ + widened_);
      training += parameters(kind) * element_;  // gradients
      fitting = std::max(fitting, fitting_bytes(kind));
    }
    training = is_trained_
                   ? training + gain_gradient_bytes() + activation_bytes(passes_.trained_at_once)
                   : 0;
    fitting = fits_ > 0 ? evaluating + fitting : 0;  // the candidate's values are there by then
    const double judged = passes_.judged_at_once;
    evaluating += judged * element_ * hidden() + widest_bytes(judged) + passing_bytes(judged);
    return states + std::max({training, fitting, evaluating});
  }

  // Master, moments, mask, and the copy that products read; the dense window's weights.
  double bytes_of_state() const {
    double bytes = (is_trained_ ? 3 : 1) * 4 + 1 + (shape_.compute_bytes == 4 ? 0 : element_);
    if (options_.propagation == Propagation::kSparse) bytes += widened_;
    return bytes;
  }

  double gain_gradient_bytes() const {
    double most = 0;
    for (int half = shape_.halves.first; half < shape_.halves.last; ++half) {
      most = std::max(most, static_cast<double>(largest_weight(architecture_, half_of(half))));
    }
    return most * element_;
  }

  double widest_bytes(double tokens) const {
    double most = 0;
    for (int half = shape_.halves.first; half < shape_.halves.last; ++half) {
      most = std::max(most, kept_bytes(architecture_, half_of(half), batch_of(shape_, tokens)));
    }
    return most;
  }

  double passing_bytes(double tokens) const {
    double most = 0;
    for (int half = shape_.halves.first; half < shape_.halves.last; ++half) {
      most = std::max(
          most, coppice::passing_bytes(architecture_, half_of(half), batch_of(shape_, tokens)));
    }
    return most;
  }

  // The input, and what is kept until gradients take its place.
  double activation_bytes(double tokens) const {
    const double input = tokens * element_ * hidden();
    if (shape_.kept_activations == KeptActivations::kOfOneHalf) {
      const auto halves = static_cast<double>(shape_.halves.last - shape_.halves.first);
      return halves * input + widest_bytes(tokens) + passing_bytes(tokens);
    }
    double kept = 0;
    for (int half = shape_.halves.first; half < shape_.halves.last; ++half) {
      kept += kept_bytes(architecture_, half_of(half), batch_of(shape_, tokens));
    }
    return input + kept + passing_bytes(tokens);
  }

  double fitting_bytes(Half half) const {
    double most = 0;
    for (const LinearSpec& linear : architecture_.linears) {
      if (linear.half != half || !is_fitted(linear)) continue;
      // The result in fp32, as it will be written, and the opposite of the mask.
      const double result = static_cast<double>(linear.out * linear.in) * (4 + stored_ + 1);
      const double at_work = folds_units(options_) ? fold_bytes(linear.out, linear.in, linear.in)
                                                   : least_squares_bytes(linear.out, linear.in);
      most = std::max(most, at_work + result);
    }
    return most;
  }

  const SpanShape& shape_;
  const Architecture& architecture_;
  const ReconstructOptions& options_;
  const Passes passes_;
  const double fits_;  // how often each linear is fitted
  const bool is_trained_;
  const double element_ = static_cast<double>(shape_.compute_bytes);  // bytes of one
  const double stored_ = stored_bytes(architecture_);
  const double widened_ = element_ == stored_ ? 0 : element_;  // of one element's copy
};

}  // namespace

Cost window_cost(const SpanShape& shape, const ReconstructOptions& options) {
  return WindowCost(shape, options).sum();
}

Cost matrix_cost(const SpanShape& shape, const ReconstructOptions& options) {
  const Passes passes = passes_of(options, shape.num_windows, shape.seqlen);
  const Architecture& architecture = shape.architecture;
  const double element = static_cast<double>(shape.compute_bytes);
  const double stored = stored_bytes(architecture);
  const double seqlen = static_cast<double>(shape.seqlen);
  const double forwards = options.propagation == Propagation::kMixed ? 2 : 1;
  const double tokens = passes.training + passes.evaluated;
  Cost cost;
  for (int half = shape.halves.first; half < shape.halves.last; ++half) {
    const Half kind = half_of(half);
    const double parameters = static_cast<double>(half_parameters(architecture, kind));
    Cost of_half;
    // The dense half makes inputs; target and output; the gradient of the weight.
    of_half.product_flop = linear_flop(architecture, kind, (forwards + 2) * tokens) +
                           linear_flop(architecture, kind, passes.training);
    of_half.attention_flop = attention_flop(architecture, kind, forwards * tokens, seqlen);
    double widths = 0, widest = 0, fitting = 0;
    for (const auto& [name, input] : inputs_of(architecture, kind)) {
      widths += input.share_of_tokens * static_cast<double>(input.width);
    }
    for (const LinearSpec& linear : architecture.linears) {
      if (linear.half != kind) continue;
      widest = std::max(widest, static_cast<double>(linear.out));
      // Output and target are written and read, and the gradient between them.
      of_half.bytes_touched += 6 * element * tokens * architecture.share_of_tokens(linear) *
                               static_cast<double>(linear.out);
      if (!fits(options)) continue;
      of_half.product_flop += static_cast<double>(ridges_of(options).size()) *
                              least_squares_flop(linear.out, linear.in);
      fitting = std::max(fitting, least_squares_bytes(linear.out, linear.in));
    }
    of_half.bytes_touched +=
        forwards * element * tokens * touched_activations(architecture, kind).forward;
    of_half.bytes_touched += passes.steps * parameters * (3 * 4 + 1 + 3 * 4 + 4 * element);
    of_half.bytes_touched += passes.evaluations * parameters * (4 + 2 * stored + element);
    const bool has_copies = element != stored;
    const double masters = parameters * ((trains_adamw(options) ? 3 : 1) * 4.0 + 1 +
                                         (shape.compute_bytes == 4 ? 0 : element));
    const double dense = has_copies ? parameters * element : 0;
    // As they will be written: what was pruned, from the start to the end; what is judged, which is
    // widened again; the best so far.
    const double pruned = parameters * stored;
    const double judged = parameters * (stored + (has_copies ? element : 0));
    const double best = parameters * stored;
    // While the dense half runs on what entered it, and then: inputs, outputs, targets, gradients.
    const auto captured = [&](double at_once) {
      const BatchShape batch = batch_of(shape, at_once);
      const double token = at_once * element;
      return std::max(token * (static_cast<double>(architecture.hidden) + (forwards - 1) * widths) +
                          kept_bytes(architecture, kind, batch) +
                          passing_bytes(architecture, kind, batch),
                      token * (forwards * widths + 3 * widest));
    };
    const double gradient = static_cast<double>(largest_weight(architecture, kind)) * (element + 4);
    const double training = passes.steps > 0 ? captured(passes.trained_at_once) + gradient : 0;
    of_half.bytes_held =
        masters + dense + pruned + best +
        std::max({training, judged + captured(passes.judged_at_once), judged + fitting});
    of_half.bytes_moved = forwards * tokens * static_cast<double>(architecture.hidden) * stored;
    cost += of_half;
  }
  return cost;
}

}  // namespace coppice
