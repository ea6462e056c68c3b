#include "stages/reconstruct/window_weights.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>

#include <stdexcept>
#include <utility>

#include "stages/reconstruct/least_squares.h"
#include "stages/reconstruct/liar.h"
#include "stages/units/unit_layout.h"  // reads_units

namespace coppice {

WindowWeights::WindowWeights(const SpanJob& span, HalfRange halves, const Variant& variant,
                             const ReconstructOptions& options)
    : span_(span), variant_(variant), trains_(trains_adamw(options)), folds_(folds_units(options)) {
  for (int half = halves.first; half < halves.last; ++half) {
    for (const LinearSpec& spec : span.architecture.linears) {
      if (spec.half == half_of(half)) add_linear(half, spec, options);
    }
    for (const NormSpec& spec : span.architecture.norms) {
      if (spec.half == half_of(half)) add_norm(half, spec, options);
    }
    if (span.architecture.has_experts(half_of(half))) {
      leaves_[half / 2].router = span.dense_at(half).router.to(span.compute);
    }
  }
}

void WindowWeights::add_linear(int half, const LinearSpec& spec,
                               const ReconstructOptions& options) {
  const int block = half / 2;
  const std::string name = in_block(span_.architecture, block, spec.name);
  const Linear& dense = span_.dense_at(half).linears.at(spec.role);
  Linear& leaf = leaves_[block].linears[spec.role];
  leaf.weight = train(name + ".weight", dense.weight, Trained::Kind::kWeight, block, spec.role);
  if (!dense.bias.defined()) return;
  const bool is_folded_into = folds_ && reads_units(span_.architecture, spec);
  if (!options.train_biases && !is_folded_into) {
    leaf.bias = start_value(name + ".bias", dense.bias).to(span_.compute);
    return;
  }
  leaf.bias = train(name + ".bias", dense.bias, Trained::Kind::kBias, block, spec.role);
  trained_.back().is_only_fitted = !options.train_biases;
}

void WindowWeights::add_norm(int half, const NormSpec& spec, const ReconstructOptions& options) {
  const int block = half / 2;
  const std::string name = in_block(span_.architecture, block, spec.name);
  const Norm& dense = span_.dense_at(half).norms.at(spec.role);
  const auto leaf = [&](const std::string& tensor, const at::Tensor& value, Trained::Kind kind) {
    return options.train_norms ? train(tensor, value, kind, block, spec.role)
                               : start_value(tensor, value).to(span_.compute);
  };
  Norm& leaves = leaves_[block].norms[spec.role];
  leaves.gain = leaf(name + ".weight", dense.gain, Trained::Kind::kNormGain);
  if (!dense.bias.defined()) return;
  leaves.bias = leaf(name + ".bias", dense.bias, Trained::Kind::kNormBias);
}

at::Tensor WindowWeights::start_value(const std::string& name, const at::Tensor& dense) const {
  const auto adapted = variant_.adapted.find(name);
  return adapted == variant_.adapted.end() ? dense : adapted->second;
}

at::Tensor WindowWeights::train(const std::string& name, const at::Tensor& dense,
                                Trained::Kind kind, int block, const std::string& role) {
  Trained trained;
  trained.dense = dense;
  trained.kind = kind;
  trained.block = block;
  trained.role = role;
  AdamWState& state = trained.state;
  const at::Tensor start = start_value(name, dense);
  state.master = start.to(start.options().dtype(at::kFloat), /*non_blocking=*/false, /*copy=*/true,
                          at::MemoryFormat::Contiguous);
  if (trains_) {
    state.first_moment = at::zeros_like(state.master);
    state.second_moment = at::zeros_like(state.master);
  }
  const auto mask = variant_.masks.find(name);
  if (mask != variant_.masks.end()) state.mask = mask->second;
  // The leaf shares the storage that the optimiser writes: the next forward sees the step.
  if (span_.compute == at::kFloat) {
    trained.leaf = state.master.detach();
  } else {
    state.compute = state.master.to(span_.compute);
    trained.leaf = state.compute.detach();
  }
  trained.leaf.requires_grad_(true);
  names_.push_back(name);
  trained_.push_back(std::move(trained));
  return trained_.back().leaf;
}

void WindowWeights::step(const AdamWStep& step) {
  const at::NoGradGuard no_graph;
  for (Trained& trained : trained_) {
    if (trained.is_only_fitted) {
      trained.leaf.mutable_grad().reset();
      continue;
    }
    const at::Tensor& gradient = trained.leaf.grad();
    // An expert that the batch passed by has a gradient of zero: its moments decay with the
    // others'.
    masked_adamw(trained.state,
                 gradient.defined() ? gradient.contiguous() : at::zeros_like(trained.leaf), step);
    trained.leaf.mutable_grad().reset();
  }
}

void WindowWeights::scale_gradients(double factor) {
  for (Trained& trained : trained_) {
    if (trained.leaf.grad().defined()) trained.leaf.mutable_grad().mul_(factor);
  }
}

void WindowWeights::restart() {
  const at::NoGradGuard no_graph;
  for (size_t i = 0; i < trained_.size(); ++i) {
    Trained& trained = trained_[i];
    AdamWState& state = trained.state;
    state.master.copy_(start_value(names_[i], trained.dense));
    if (trains_) {
      state.first_moment.zero_();
      state.second_moment.zero_();
    }
    if (state.compute.defined()) state.compute.copy_(state.master);
    trained.leaf.mutable_grad().reset();
  }
}

std::vector<at::Tensor> WindowWeights::values() const {
  std::vector<at::Tensor> values;
  for (const Trained& trained : trained_) {
    values.push_back(trained.state.master.to(trained.dense.scalar_type(), /*non_blocking=*/false,
                                             /*copy=*/true));
  }
  return values;
}

std::vector<at::Tensor> WindowWeights::fitted(double ridge) const {
  std::vector<at::Tensor> fitted;
  for (const Trained& trained : trained_) {
    at::Tensor& values = fitted.emplace_back();
    if (trained.kind != Trained::Kind::kWeight || !trained.state.mask.defined()) continue;
    if (folds_) continue;
    const InputStatistics& statistics = statistics_of(trained);
    if (statistics.tokens == 0) continue;
    values = least_squares_as_written(trained.dense, trained.state.mask, statistics.gram, ridge);
  }
  for (size_t i = 0; folds_ && i < trained_.size(); ++i) fold(i, ridge, fitted);
  return fitted;
}

const InputStatistics& WindowWeights::statistics_of(const Trained& trained) const {
  const std::string& input = span_.architecture.linear(trained.role).input;
  return span_.statistics.at(in_block(span_.architecture, trained.block, input));
}

// Removed units are whole columns of their consumer: one row of its mask tells them.
void WindowWeights::fold(size_t weight, double ridge, std::vector<at::Tensor>& fitted) const {
  const Trained& consumer = trained_[weight];
  const at::Tensor& mask = consumer.state.mask;
  if (consumer.kind != Trained::Kind::kWeight || !mask.defined()) return;
  if (!reads_units(span_.architecture, span_.architecture.linear(consumer.role))) return;
  const InputStatistics& statistics = statistics_of(consumer);
  if (statistics.gram_tokens == 0) return;
  const Linear& dense = span_.dense_at(2 * consumer.block).linears.at(consumer.role);
  const FoldedLinear folded =
      fold_removed(dense, mask.select(0, 0),
                   {statistics.gram, statistics.gram_sum, statistics.gram_tokens}, ridge);
  fitted[weight] = folded.weight.to(dense.weight.scalar_type())
                       .add_(0)  // no −0
                       .masked_fill_(mask.logical_not(), 0);
  if (folded.bias.defined()) fitted[weight + 1] = folded.bias.to(dense.bias.scalar_type());
}

WindowBlocks WindowWeights::with(const std::vector<at::Tensor>& values) const {
  WindowBlocks blocks = leaves_;
  for (size_t i = 0; i < trained_.size(); ++i) {
    const Trained& trained = trained_[i];
    if (!values[i].defined()) continue;
    const at::Tensor value = values[i].to(span_.compute);
    BlockWeights& weights = blocks.at(trained.block);
    switch (trained.kind) {
      case Trained::Kind::kWeight:
        weights.linears.at(trained.role).weight = value;
        break;
      case Trained::Kind::kBias:
        weights.linears.at(trained.role).bias = value;
        break;
      case Trained::Kind::kNormGain:
        weights.norms.at(trained.role).gain = value;
        break;
      case Trained::Kind::kNormBias:
        weights.norms.at(trained.role).bias = value;
        break;
    }
  }
  return blocks;
}

}  // namespace coppice
