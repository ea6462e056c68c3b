#include "stages/units/unit_saliency.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "stages/errors.h"  // NumericalError
#include "stages/finite.h"
#include "stages/model/half_cost.h"
#include "stages/retrain/resident_forward.h"
#include "stages/units/unit_layout.h"

namespace coppice {
namespace {

std::vector<UnitLayout> layouts_of(const Architecture& architecture) {
  std::vector<UnitLayout> layouts = unit_layouts(architecture, Half::kAttention);
  for (UnitLayout& units : unit_layouts(architecture, Half::kMlp)) {
    layouts.push_back(std::move(units));
  }
  return layouts;
}

/// [units] fp64 on the CPU: the derivative by each unit's factor.
at::Tensor derivatives(const UnitLayout& units, const at::Tensor& weight,
                       const at::Tensor& gradient) {
  return weight.to(at::kFloat)
      .mul(gradient)  // [out, in], in fp32 whatever the gradient is in
      .sum({0}, /*keepdim=*/false, at::kDouble)
      .view({units.count, units.size})
      .sum({1})
      .to(at::kCPU);
}

/// Sums over windows as they come.
class Saliency {
 public:
  explicit Saliency(const ResidentModel& model)
      : model_(model), layouts_(layouts_of(model.architecture)) {
    if (layouts_.empty()) throw std::invalid_argument("unit saliency: this model has no units");
    for (int block = 0; block < model.architecture.num_blocks; ++block) {
      for (const UnitLayout& units : layouts_) {
        sums_[consumer(units, block)] = at::zeros({units.count}, at::TensorOptions(at::kDouble));
      }
    }
  }

  /// What a block computes with: consumers collect gradients.
  NamedTensors leaves(int block) const {
    NamedTensors leaves;
    for (const NamedShape& tensor : block_tensors(model_.architecture, block)) {
      leaves[tensor.name] = model_.tensors.at(tensor.name).to(model_.compute);
    }
    for (const UnitLayout& units : layouts_) {
      at::Tensor& weight = leaves.at(consumer(units, block) + ".weight");
      weight = weight.detach().requires_grad_(true);
    }
    return leaves;
  }

  void add(int block, const NamedTensors& leaves) {
    const at::NoGradGuard no_graph;
    for (const UnitLayout& units : layouts_) {
      const std::string name = consumer(units, block);
      const at::Tensor& weight = leaves.at(name + ".weight");
      if (!weight.grad().defined()) continue;  // an expert that the window passed by
      const at::Tensor of_window = derivatives(units, weight, weight.grad());
      require_finite("derivatives of the loss by the units of " + name, of_window);
      sums_.at(name).add_(of_window.abs_());
    }
  }

  NamedTensors means(int64_t windows) const {
    NamedTensors means;
    for (const auto& [name, sum] : sums_) {
      means[name] = sum.div(static_cast<double>(windows)).to(at::kFloat);
    }
    return means;
  }

 private:
  std::string consumer(const UnitLayout& units, int block) const {
    return in_block(model_.architecture, block, units.consumer->name);
  }

  const ResidentModel& model_;
  std::vector<UnitLayout> layouts_;
  NamedTensors sums_;
};

}  // namespace

std::optional<NamedTensors> unit_saliency(const ResidentModel& model, const at::Tensor& ids,
                                          const SaliencyStop& stop) {
  const int64_t windows = ids.size(0);
  if (windows < 1 || ids.size(1) < 2) {
    throw std::invalid_argument(
        fmt::format("unit saliency: windows of 2 tokens or more are wanted, found {} of {}",
                    windows, ids.size(1)));
  }
  const ResidentForward forward(model, ids.size(1));
  Saliency saliency(model);
  for (int64_t window = 0; window < windows; ++window) {
    if (stop && stop(window)) return std::nullopt;
    const double loss = forward.loss_and_gradients(
        ids.narrow(0, window, 1), [&](int block) { return saliency.leaves(block); },
        [&](int block, const NamedTensors& leaves) { saliency.add(block, leaves); });
    if (!std::isfinite(loss)) {
      throw NumericalError(fmt::format("next-token loss of window {}", window), 1, 1);
    }
  }
  return saliency.means(windows);
}

Cost unit_saliency_cost(const Architecture& architecture, int64_t windows, const BatchShape& window,
                        int64_t stored_bytes) {
  const double element = window.element;
  const auto stored = static_cast<double>(stored_bytes);
  const auto tokens = static_cast<double>(window.seqlen);
  Cost block;                         // of one block, for one window
  double weights = 0, consumers = 0;  // elements
  double largest = 0;                 // of the consumers
  double kept = 0, passing = 0;       // bytes of activations
  for (const Half half : {Half::kAttention, Half::kMlp}) {
    // Forward twice; back the derivatives by inputs, and two and a half times its attention.
    block.product_flop += linear_flop(architecture, half, 3 * tokens);
    block.attention_flop += attention_flop(architecture, half, 4.5 * tokens, tokens);
    const TouchedElements touched = touched_activations(architecture, half);
    block.bytes_touched += element * tokens * (2 * touched.forward + touched.backward);
    const double activations = kept_bytes(architecture, half, window);
    weights += static_cast<double>(half_parameters(architecture, half));
    kept += activations;
    passing = std::max(passing, passing_bytes(architecture, half, window));
    for (const UnitLayout& units : unit_layouts(architecture, half)) {
      const auto consumer = static_cast<double>(units.consumer->out * units.consumer->in);
      consumers += consumer;
      largest = std::max(largest, consumer);
      block.product_flop += 2 * tokens * architecture.share_of_tokens(*units.consumer) * consumer;
    }
  }
  const bool is_converted = stored != element;
  // Weights converted both ways; of consumers two factors, their product in fp32 and in fp64.
  block.bytes_touched += is_converted ? 2 * weights * (stored + element) : 0;
  block.bytes_touched += consumers * (2 * element + 2 * 4 + 2 * 8);

  const auto blocks = static_cast<double>(architecture.num_blocks);
  const auto vocab = static_cast<double>(architecture.vocab);
  const auto width = static_cast<double>(architecture.width_of_embedding());
  const double all = static_cast<double>(windows);
  Cost cost;
  cost.product_flop = all * (blocks * block.product_flop + 2 * 2 * tokens * vocab * width);
  cost.attention_flop = all * blocks * block.attention_flop;
  // Logits are written, summed up, and become their gradient; the head is converted.
  cost.bytes_touched = all * (blocks * block.bytes_touched + tokens * vocab * (6 * 4 + element) +
                              (is_converted ? vocab * width * (stored + element) : 0));
  // What enters every block; a block converted, its consumers' gradients, one's products, what the
  // forward kept, the gradients of activations replacing that one by one; or the head.
  const double at_work = (is_converted ? element * weights : 0) + element * consumers +
                         (2 * 4 + 8) * largest + kept + passing;
  const double head =
      next_token_loss_bytes(window.seqlen, architecture.vocab, architecture.width_of_embedding(),
                            static_cast<int64_t>(element));
  cost.bytes_held = (blocks + 2) * tokens * static_cast<double>(architecture.hidden) * element +
                    std::max(at_work, head);
  return cost;
}

}  // namespace coppice
