#include "stages/calibrate.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <numeric>

#include "stages/finite.h"
#include "stages/layer_similarity.h"
#include "stages/model/block_forward.h"
#include "stages/model/half_cost.h"
#include "stages/ops/column_squares.h"
#include "stages/ops/gram.h"
#include "stages/reconstruct.h"  // num_held_out
#include "stages/stored_states.h"

namespace coppice {
namespace {

/// One half-block at work: its weights in the compute dtype live as long as the pass over the
/// windows.
struct HalfAtWork {
  int number;
  BlockWeights weights;
  std::unique_ptr<ActivationSink> sink;  // of its output; null where nobody asks for it
  InputObserver observe, observe_held_out;
  StorableCheck check;  // of its output
};

at::Tensor& zeros_unless_there(at::Tensor& sums, at::IntArrayRef sizes, const at::Tensor& x,
                               at::ScalarType dtype) {
  if (!sums.defined()) sums = at::zeros(sizes, x.options().dtype(dtype));
  return sums;
}

InputObserver accumulate(SpanJob& span, int block, Calibrate::Statistics wanted, bool wants_sums) {
  return [&span, block, wanted, wants_sums](const std::string& input, const at::Tensor& x) {
    InputStatistics& statistics = span.statistics[in_block(span.architecture, block, input)];
    const int64_t in = x.size(1);
    const bool wants_gram = wanted == Calibrate::Statistics::kGram;
    zeros_unless_there(statistics.sum_of_squares, {in}, x, at::kDouble);
    if (wants_gram) zeros_unless_there(statistics.gram, {in, in}, x, at::kFloat);
    if (wants_sums) zeros_unless_there(statistics.sum, {in}, x, at::kDouble);
    if (wants_gram && wants_sums) zeros_unless_there(statistics.gram_sum, {in}, x, at::kDouble);
    if (x.size(0) == 0) return;  // an expert that this window passes by
    add_column_squares(statistics.sum_of_squares, x);
    statistics.tokens += x.size(0);
    if (wants_gram) {
      add_gram(statistics.gram, x);
      statistics.gram_tokens += x.size(0);
    }
    if (!wants_sums) return;
    const at::Tensor sum = x.sum({0}, /*keepdim=*/false, at::kFloat);  // of one window
    statistics.sum.add_(sum);
    if (wants_gram) statistics.gram_sum.add_(sum);
  };
}

std::string output_name(const Architecture& architecture, int half) {
  if (architecture.has_experts(half_of(half))) {
    return "residual stream after the experts of " +
           in_block(architecture, half / 2, architecture.experts.router);
  }
  return "residual stream after " +
         in_block(architecture, half / 2, architecture.last_linear(half_of(half)).name);
}

HalfAtWork put_to_work(SpanJob& span, int half, const Calibrate::Options& options) {
  HalfAtWork work{
      .number = half,
      .weights =
          options.convert == Calibrate::Convert::kAhead
              ? converted(span.architecture, span.dense_at(half), half_of(half), span.compute)
              : span.dense_at(half),
      .sink = nullptr,
      .observe = nullptr,
      .observe_held_out = nullptr,
      .check = StorableCheck(output_name(span.architecture, half), span.architecture.dtype)};
  if (options.stream == Stream::kDense) {
    work.sink = span.boundaries.sink({Stream::kDense, half + 1});
  }
  if (options.statistics != Calibrate::Statistics::kNone) {
    work.observe = accumulate(span, half / 2, options.statistics, options.wants_sums);
    work.observe_held_out =
        accumulate(span, half / 2, Calibrate::Statistics::kSquares, options.wants_sums);
  }
  return work;
}

int64_t stored_bytes(const std::string& dtype) { return dtype == "F32" ? 4 : 2; }

}  // namespace

Products Calibrate::gives() const {
  Products products = Products::kNone;
  if (options_.stream == Stream::kDense) products = Products::kBoundaries;
  if (options_.statistics != Statistics::kNone) products = products | Products::kStatistics;
  if (options_.statistics == Statistics::kGram) products = products | Products::kGram;
  if (options_.wants_sums) products = products | Products::kSums;
  return products;
}

int Calibrate::num_gram_windows(int64_t num_windows) const {
  const auto windows = static_cast<int>(num_windows);
  if (options_.held_out_fraction == 0 || windows < 2) return windows;
  return windows - num_held_out(options_.held_out_fraction, windows);
}

// Summed and multiplied in fp32; squared as a whole where no loop of ours adds squares up.
double Calibrate::widened_bytes(const SpanShape& shape, Half half) const {
  const bool is_squared = options_.statistics != Statistics::kNone && !shape.is_host;
  const bool is_copied = shape.compute_bytes != 4 && (options_.wants_sums || is_squared ||
                                                      options_.statistics == Statistics::kGram);
  double most = 0;
  for (const auto& [name, input] : inputs_of(shape.architecture, half)) {
    const double in_fp32 = 4.0 * static_cast<double>(shape.seqlen * input.width);
    most = std::max(most, (is_copied ? in_fp32 : 0) + (is_squared ? in_fp32 : 0));
  }
  return most;
}

Cost Calibrate::cost(const SpanShape& shape) const {
  const Architecture& architecture = shape.architecture;
  const double tokens = static_cast<double>(shape.num_windows * shape.seqlen);
  const double seqlen = static_cast<double>(shape.seqlen);
  const double element = static_cast<double>(shape.compute_bytes);
  const double stored = static_cast<double>(stored_bytes(architecture.dtype));
  const double boundary = tokens * static_cast<double>(architecture.hidden);
  const bool has_copies = shape.compute_bytes != stored_bytes(architecture.dtype);
  Cost cost;
  cost.bytes_moved = boundary * stored;  // the span's input
  double copies = 0, activations = 0, widened = 0;
  if (options_.wants_similarities) {  // three cosines of pairs in fp32, and what entered the block
    cost.bytes_touched +=
        boundary * static_cast<double>(shape.halves.last - shape.halves.first) * 1.5 * 8 * 4;
    widened = 3 * 4.0 * seqlen * static_cast<double>(architecture.hidden);
  }
  for (int half = shape.halves.first; half < shape.halves.last; ++half) {
    const Half kind = half_of(half);
    cost.product_flop += linear_flop(architecture, kind, tokens);
    cost.attention_flop += attention_flop(architecture, kind, tokens, seqlen);
    if (options_.stream == Stream::kDense) cost.bytes_moved += boundary * stored;
    double touched = touched_activations(architecture, kind).forward;
    if (options_.statistics != Statistics::kNone) {  // reads what linears read
      for (const auto& [name, input] : inputs_of(architecture, kind)) {
        const double reads = options_.wants_sums ? 2 : 1;
        touched += reads * input.share_of_tokens * static_cast<double>(input.width);
      }
    }
    // From the source and to the sink, looked at once for what is not finite.
    cost.bytes_touched += tokens * touched * element + boundary * (3 * element + 2 * stored);
    const auto parameters = static_cast<double>(half_parameters(architecture, kind));
    const auto largest = static_cast<double>(largest_weight(architecture, kind));
    if (has_copies && options_.convert == Convert::kAhead) {
      copies += parameters * element;
      cost.bytes_touched += parameters * (stored + element);
    } else if (has_copies) {
      copies = std::max(copies, largest * element);
      cost.bytes_touched +=
          static_cast<double>(shape.num_windows) * parameters * (stored + element);
    }
    cost.bytes_touched += parameters * stored;  // looked at for what is not finite
    const BatchShape window{1, shape.seqlen, element, shape.is_host};
    activations = std::max(activations, kept_bytes(architecture, kind, window) +
                                            passing_bytes(architecture, kind, window));
    widened = std::max(widened, widened_bytes(shape, kind));
    if (options_.statistics != Statistics::kGram) continue;
    const double seen = static_cast<double>(num_gram_windows(shape.num_windows)) * seqlen;
    for (const auto& [name, input] : inputs_of(architecture, kind)) {
      const int64_t in = input.width;
      cost.product_flop += gram_flop(in, input.share_of_tokens * seen);
      cost.bytes_kept += 4.0 * static_cast<double>(in * in);
    }
  }
  const double input = element * seqlen * static_cast<double>(architecture.hidden);
  cost.bytes_held = copies + input + activations + widened;
  return cost;
}

void Calibrate::run(WindowJob& job) const {
  const at::NoGradGuard no_graph;
  SpanJob& span = job.span;
  for (int block = job.halves.first_block(); block < job.halves.last_block(); ++block) {
    require_finite(span.architecture, block, span.dense_at(2 * block));
  }
  if (options_.stream == Stream::kPropagated) span.statistics.clear();
  std::vector<HalfAtWork> halves;
  for (int half = job.halves.first; half < job.halves.last; ++half) {
    halves.push_back(put_to_work(span, half, options_));
  }
  const std::unique_ptr<ActivationSource> inputs =
      span.boundaries.source(entering(options_.stream, job.halves.first));
  std::vector<int> order(static_cast<size_t>(inputs->num_windows()));
  std::iota(order.begin(), order.end(), 0);
  inputs->announce(order);
  SimilarityMeans similarities;
  for (const int window : order) {
    const bool is_held_out = window >= num_gram_windows(inputs->num_windows());
    MicroBatch x = inputs->read({&window, 1});
    for (HalfAtWork& half : halves) {
      const at::Tensor entering = options_.wants_similarities ? x.hidden : at::Tensor();
      x.hidden = forward_half(half.number, span.architecture, half.weights, span.rotary, x,
                              is_held_out ? half.observe_held_out : half.observe);
      half.check.add(x.hidden);
      // Before the last window is handed on: a boundary that lacks one does not count as durable.
      if (window == order.back()) half.check.require();
      if (half.sink) half.sink->write(window, x.hidden);
      // Blocks that travel together see what they would see alone.
      if (half_of(half.number) == Half::kMlp) x.hidden = as_stored(span, x.hidden);
      if (options_.wants_similarities) similarities.add(half.number, entering, x.hidden);
    }
  }
  if (options_.wants_similarities) span.similarities = similarities.means();
  for (auto& [input, statistics] : span.statistics) {
    if (statistics.gram.defined()) mirror_gram(statistics.gram);
  }
}

}  // namespace coppice
