#include "stages/retrain/block_adapters.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/zeros_like.h>

#include <set>
#include <utility>

#include "stages/retrain/lora.h"
#include "stages/seed.h"

namespace coppice {
namespace {

AdamWState started_at(const at::Tensor& values) {
  AdamWState state;
  state.master = values;
  state.first_moment = at::zeros_like(values);
  state.second_moment = at::zeros_like(values);
  return state;
}

at::Tensor copied(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.detach().to(dtype, /*non_blocking=*/false, /*copy=*/true);
}

}  // namespace

BlockAdapters::BlockAdapters(const Architecture& architecture, int block, NamedTensors pruned,
                             const RetrainOptions& options)
    : pruned_(std::move(pruned)), scale_(options.alpha / options.rank) {
  std::set<std::string> biases;
  for (const LinearSpec& spec : architecture.linears) {
    const std::string linear = in_block(architecture, block, spec.name);
    linear_of_weight_[linear + ".weight"] = linear;
    biases.insert(linear + ".bias");
    LoraFactors factors =
        start_factors(spec.out, spec.in, options.rank, seed_of(options.training.seed, linear),
                      pruned_.at(linear + ".weight").device());
    parameters_[linear + ".lora_A"] = started_at(factors.a);
    parameters_[linear + ".lora_B"] = started_at(factors.b);
  }
  const bool has_router = architecture.experts.count > 0;
  for (const auto& [name, tensor] : pruned_) {
    if (linear_of_weight_.count(name) != 0) continue;
    if (has_router && name == router_tensor(architecture, block)) continue;
    const bool is_trained =
        biases.count(name) != 0 ? options.training.train_biases : options.training.train_norms;
    if (is_trained) parameters_[name] = started_at(copied(tensor, at::kFloat));
  }
}

NamedTensors BlockAdapters::leaves(at::ScalarType compute) const {
  NamedTensors leaves;
  for (const auto& [name, tensor] : pruned_) {
    const auto linear = linear_of_weight_.find(name);
    const auto parameter = parameters_.find(name);
    at::Tensor& leaf = leaves[name];
    if (linear != linear_of_weight_.end()) {
      const LoraFactors factors{parameters_.at(linear->second + ".lora_A").master,
                                parameters_.at(linear->second + ".lora_B").master};
      leaf = effective_weight(tensor, factors, scale_, compute).requires_grad_(true);
    } else if (parameter != parameters_.end()) {
      leaf = copied(parameter->second.master, compute).requires_grad_(true);
    } else {
      leaf = tensor.to(compute);
    }
  }
  return leaves;
}

void BlockAdapters::step(const NamedTensors& leaves, const AdamWStep& step) {
  const at::NoGradGuard no_graph;
  for (const auto& [name, leaf] : leaves) {
    const auto linear = linear_of_weight_.find(name);
    if (!leaf.grad().defined()) {
      // Not trained; or an expert that the batch passed by: its moments decay with the others'.
      for (const char* factor : {".lora_A", ".lora_B"}) {
        if (linear == linear_of_weight_.end()) break;
        AdamWState& state = parameters_.at(linear->second + factor);
        masked_adamw(state, at::zeros_like(state.master), step);
      }
    } else if (linear != linear_of_weight_.end()) {
      AdamWState& a = parameters_.at(linear->second + ".lora_A");
      AdamWState& b = parameters_.at(linear->second + ".lora_B");
      const LoraFactors gradients =
          factor_gradients(leaf.grad(), pruned_.at(name), {a.master, b.master}, scale_);
      masked_adamw(a, gradients.a.contiguous(), step);
      masked_adamw(b, gradients.b.contiguous(), step);
    } else {
      masked_adamw(parameters_.at(name), leaf.grad().contiguous(), step);
    }
  }
}

NamedTensors BlockAdapters::values() const {
  NamedTensors values;
  for (const auto& [name, state] : parameters_) values[name] = copied(state.master, at::kFloat);
  return values;
}

NamedTensors BlockAdapters::merged(const NamedTensors& values) const {
  const at::NoGradGuard no_graph;
  NamedTensors merged = pruned_;
  for (auto& [name, tensor] : merged) {
    const auto linear = linear_of_weight_.find(name);
    const auto value = values.find(name);
    if (linear != linear_of_weight_.end()) {
      const LoraFactors factors{values.at(linear->second + ".lora_A"),
                                values.at(linear->second + ".lora_B")};
      tensor = effective_weight(tensor, factors, scale_, tensor.scalar_type());
    } else if (value != values.end()) {
      tensor = value->second.to(tensor.scalar_type());
    }
  }
  return merged;
}

}  // namespace coppice
