#include "stages/retrain/block_adapters.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randn_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/tiny_model.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsIdenticalTo;
using testing::tiny_pruned_model;
using testing::tiny_retrain_options;

NamedTensors block_of(const ResidentModel& model, int block) {
  NamedTensors tensors;
  for (const NamedShape& tensor : block_tensors(model.architecture, block)) {
    tensors[tensor.name] = model.tensors.at(tensor.name);
  }
  return tensors;
}

struct Adapted {
  explicit Adapted(const RetrainOptions& options = tiny_retrain_options())
      : adapters(model.architecture, 1, block_of(model, 1), options) {
    for (auto& [name, state] : adapters.parameters()) {
      state.master.add_(at::randn_like(state.master), 0.1);
    }
  }
  ResidentModel model = tiny_pruned_model();
  BlockAdapters adapters;
};

TEST(BlockAdapters, WhatIsWrittenIsWhatTrainingComputesWith) {
  const Adapted adapted;
  const NamedTensors leaves = adapted.adapters.leaves(at::kFloat);
  for (const auto& [name, tensor] : adapted.adapters.merged(adapted.adapters.values())) {
    EXPECT_THAT(tensor, IsIdenticalTo(leaves.at(name).detach())) << name;
  }
}

TEST(BlockAdapters, LeavesCollectGradientsWhereSomethingIsTrained) {
  RetrainOptions options = tiny_retrain_options();
  options.training.train_norms = false;
  const Adapted adapted(options);
  for (const auto& [name, leaf] : adapted.adapters.leaves(at::kFloat)) {
    const bool is_norm = name.find("layernorm") != std::string::npos;
    EXPECT_EQ(leaf.requires_grad(), !is_norm) << name;
  }
}

TEST(BlockAdapters, StepMovesEveryParameterByTheRate) {
  Adapted adapted;
  const NamedTensors before = adapted.adapters.values();
  const NamedTensors leaves = adapted.adapters.leaves(at::kFloat);
  for (const auto& [name, leaf] : leaves) leaf.mutable_grad() = at::randn_like(leaf).add_(3);
  AdamWStep step;
  step.lr = 0.25;
  adapted.adapters.step(leaves, step);
  for (const auto& [name, value] : adapted.adapters.values()) {
    // The first step of AdamW goes a whole rate against the gradient's sign.
    const double moved = (value - before.at(name)).abs().max().item<double>();
    EXPECT_NEAR(moved, 0.25, 1e-3) << name;
  }
}

TEST(BlockAdapters, ThePrunedTensorsAreNeverWritten) {
  Adapted adapted;
  NamedTensors copies;
  for (const auto& [name, tensor] : adapted.adapters.pruned()) copies[name] = tensor.clone();
  const NamedTensors leaves = adapted.adapters.leaves(at::kFloat);
  for (const auto& [name, leaf] : leaves) leaf.mutable_grad() = at::ones_like(leaf);
  AdamWStep step;
  step.lr = 1;
  adapted.adapters.step(leaves, step);
  adapted.adapters.merged(adapted.adapters.values());
  for (const auto& [name, tensor] : copies) {
    EXPECT_THAT(adapted.adapters.pruned().at(name), IsIdenticalTo(tensor)) << name;
  }
}

TEST(BlockAdapters, ARouterIsNotTrainedAndWhatHasNoGradientStays) {
  const Architecture architecture = testing::tiny_moe();
  NamedTensors pruned;
  for (const NamedShape& tensor : block_tensors(architecture, 0)) {
    pruned[tensor.name] = at::randn(tensor.shape);
  }
  BlockAdapters adapters(architecture, 0, pruned, tiny_retrain_options());
  NamedTensors leaves = adapters.leaves(at::kFloat);
  EXPECT_FALSE(leaves.at("model.layers.0.mlp.gate.weight").requires_grad());
  const std::string passed_by = "model.layers.0.mlp.experts.4.";
  for (const auto& [name, leaf] : leaves) {
    if (leaf.requires_grad() && !name.starts_with(passed_by)) {
      leaf.mutable_grad() = at::ones_like(leaf);
    }
  }
  const NamedTensors before = adapters.values();
  AdamWStep step;
  step.lr = 0.25;
  adapters.step(leaves, step);
  for (const auto& [name, value] : adapters.values()) {
    // Of an adapter only B moves at first: A's gradient is BᵀG, and B starts at 0.
    const bool moves = !name.starts_with(passed_by) && !name.ends_with(".lora_A");
    EXPECT_EQ(value.equal(before.at(name)), !moves) << name;
  }
}

}  // namespace
}  // namespace coppice
