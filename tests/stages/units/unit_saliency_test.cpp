// Scores against derivatives by finite differences of the loss itself.
#include "stages/units/unit_saliency.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>

#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "stages/errors.h"
#include "stages/retrain/resident_forward.h"
#include "stages/units/unit_layout.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::counting_text;
using ::testing::HasSubstr;
using testing::IsCloseTo;
using testing::IsIdenticalTo;
using ::testing::ThrowsMessage;
using testing::tiny_pruned_model;

constexpr int64_t kWindows = 3, kSeqlen = 9;

/// A model whose MLPs are mixtures, of the same sizes.
ResidentModel tiny_mixture() {
  ResidentModel model = tiny_pruned_model();
  Architecture described = testing::tiny_moe(2);
  described.embedding = model.architecture.embedding;
  described.final_norm = model.architecture.final_norm;
  described.head = model.architecture.head;
  model.architecture = described;
  for (int block = 0; block < described.num_blocks; ++block) {
    for (const NamedShape& tensor : block_tensors(described, block)) {
      if (model.tensors.contains(tensor.name)) continue;
      model.tensors[tensor.name] = at::randn(tensor.shape).mul(0.3);
    }
  }
  return model;
}

/// The mean loss of one window, with the columns of one unit scaled.
double scaled_loss(ResidentModel model, const at::Tensor& ids, const std::string& consumer,
                   const UnitLayout& units, int64_t unit, double factor) {
  at::Tensor& weight = model.tensors.at(consumer + ".weight");
  weight = weight.clone();
  weight.narrow(1, unit * units.size, units.size).mul_(factor);
  const ResidentForward forward(model, ids.size(1));
  at::Tensor hidden = forward.embedded(ids);
  for (int block = 0; block < model.architecture.num_blocks; ++block) {
    hidden = forward.block_output(block, model.tensors, hidden, ids.size(0));
  }
  return forward.loss(hidden, ids).item<double>() / double(ids.size(1) - 1);
}

/// [units]: means of |L(1 + ε) − L(1 − ε)| / 2ε. Of fp32 losses: a large ε, and a second one that
/// takes its error of the third order away. Half of it leaves more of what fp32 rounds, twice of it
/// shows the fifth order (heads before a router bend the loss most).
at::Tensor by_differences(const ResidentModel& model, const at::Tensor& ids,
                          const std::string& consumer, const UnitLayout& units) {
  at::Tensor scores = at::zeros({units.count}, at::TensorOptions(at::kFloat));
  for (int64_t unit = 0; unit < units.count; ++unit) {
    double sum = 0;
    for (const at::Tensor& window : ids.split(1)) {
      const auto slope = [&](double epsilon) {
        const auto loss = [&](double factor) {
          return scaled_loss(model, window, consumer, units, unit, factor);
        };
        return (loss(1 + epsilon) - loss(1 - epsilon)) / (2 * epsilon);
      };
      sum += std::abs((4 * slope(0.05) - slope(0.1)) / 3);
    }
    scores[unit] = sum / double(ids.size(0));
  }
  return scores;
}

void expect_differences(const ResidentModel& model, const at::Tensor& ids) {
  const NamedTensors scores = unit_saliency(model, ids).value();
  size_t consumers = 0;
  for (int half = 0; half < 2 * model.architecture.num_blocks; ++half) {
    for (const UnitLayout& units : unit_layouts(model.architecture, half_of(half))) {
      const std::string name = in_block(model.architecture, half / 2, units.consumer->name);
      const at::Tensor expected = by_differences(model, ids, name, units);
      EXPECT_LT((scores.at(name) - expected).abs().max().item<double>(), 2e-5) << name;
      EXPECT_GE(scores.at(name).min().item<double>(), 0);
      ++consumers;
    }
  }
  EXPECT_EQ(scores.size(), consumers);
}

TEST(UnitSaliency, IsTheLossesSlopeByFactorsOfGroupedHeadsAndNeurons) {
  const ResidentModel model = tiny_pruned_model();
  const at::Tensor ids = counting_text(kWindows, kSeqlen);
  expect_differences(model, ids);
  const NamedTensors scores = unit_saliency(model, ids).value();
  EXPECT_GT(scores.at("model.layers.0.mlp.down_proj").max().item<double>(), 1e-3);
  EXPECT_EQ(scores.at("model.layers.1.self_attn.o_proj").sizes(), at::IntArrayRef({4}));
}

TEST(UnitSaliency, ExpertsHaveNeuronsOfTheirOwn) {
  const ResidentModel model = tiny_mixture();
  const at::Tensor ids = counting_text(1, kSeqlen);
  const NamedTensors scores = unit_saliency(model, ids).value();
  EXPECT_EQ(scores.size(), 2 * (1 + 5));
  EXPECT_GT(scores.at("model.layers.1.mlp.experts.0.down_proj").max().item<double>(), 1e-3);
  expect_differences(model, ids);
}

TEST(UnitSaliency, AnExpertWithoutTokensHasNoSlope) {
  ResidentModel model = tiny_mixture();
  for (int block = 0; block < 2; ++block) {  // of two opposite logits one is above 0
    at::Tensor& router = model.tensors.at(router_tensor(model.architecture, block));
    router = at::stack({router[0], -router[0], router[1], -router[1], at::zeros_like(router[0])});
  }
  const NamedTensors scores = unit_saliency(model, counting_text(kWindows, kSeqlen)).value();
  EXPECT_FALSE(scores.at("model.layers.0.mlp.experts.4.down_proj").any().item<bool>());
  EXPECT_TRUE(scores.at("model.layers.0.self_attn.o_proj").all().item<bool>());
}

TEST(UnitSaliency, IsAMeanOfMagnitudesOverWindows) {
  const ResidentModel model = tiny_pruned_model();
  const at::Tensor ids = counting_text(kWindows, kSeqlen);
  const NamedTensors all = unit_saliency(model, ids).value();
  for (const auto& [name, scores] : all) {
    at::Tensor sum = at::zeros_like(scores);
    for (const at::Tensor& window : ids.split(1)) {
      sum += unit_saliency(model, window).value().at(name);
    }
    EXPECT_THAT(scores, IsCloseTo(sum / kWindows)) << name;
  }
}

TEST(UnitSaliency, RoundedWeightsAndProductsHaveTheirModelsSlope) {
  const at::Tensor ids = counting_text(kWindows, kSeqlen);
  const NamedTensors exact = unit_saliency(tiny_pruned_model(at::kBFloat16), ids).value();
  const NamedTensors rounded =
      unit_saliency(tiny_pruned_model(at::kBFloat16, at::kBFloat16), ids).value();
  for (const auto& [name, scores] : exact) {
    const at::Tensor error = (rounded.at(name) - scores).norm() / scores.norm();
    EXPECT_LT(error.item<double>(), 0.1) << name;
  }
}

TEST(UnitSaliency, TheModelStaysAsItIs) {
  const ResidentModel model = tiny_pruned_model();
  const ResidentModel before = tiny_pruned_model();
  unit_saliency(model, counting_text(kWindows, kSeqlen));
  for (const auto& [name, tensor] : model.tensors) {
    EXPECT_THAT(tensor, IsIdenticalTo(before.tensors.at(name))) << name;
    EXPECT_FALSE(tensor.requires_grad()) << name;
  }
}

TEST(UnitSaliency, StopsBetweenWindows) {
  std::vector<int64_t> asked;
  const auto scores =
      unit_saliency(tiny_pruned_model(), counting_text(kWindows, kSeqlen), [&](int64_t done) {
        asked.push_back(done);
        return done == 2;
      });
  EXPECT_FALSE(scores.has_value());
  EXPECT_THAT(asked, ::testing::ElementsAre(0, 1, 2));
}

TEST(UnitSaliency, WhatIsNotFiniteIsAnError) {
  ResidentModel model = tiny_pruned_model();
  at::Tensor& weight = model.tensors.at("model.layers.1.mlp.up_proj.weight");
  weight = weight.clone().fill_(std::numeric_limits<float>::infinity());
  EXPECT_THAT([&] { unit_saliency(model, counting_text(kWindows, kSeqlen)); },
              ThrowsMessage<NumericalError>(HasSubstr("next-token loss of window 0")));
}

TEST(UnitSaliency, WantsAWindowAndANextToken) {
  const ResidentModel model = tiny_pruned_model();
  EXPECT_THROW(unit_saliency(model, counting_text(0, kSeqlen)), std::invalid_argument);
  EXPECT_THROW(unit_saliency(model, counting_text(kWindows, 1)), std::invalid_argument);
}

TEST(UnitSaliency, CostGrowsWithWindowsButForWhatIsHeld) {
  const Architecture architecture = tiny_pruned_model().architecture;
  const Cost one = unit_saliency_cost(architecture, 1, {1, 64, 4}, 2);
  const Cost four = unit_saliency_cost(architecture, 4, {1, 64, 4}, 2);
  EXPECT_DOUBLE_EQ(four.product_flop, 4 * one.product_flop);
  EXPECT_DOUBLE_EQ(four.attention_flop, 4 * one.attention_flop);
  EXPECT_DOUBLE_EQ(four.bytes_held, one.bytes_held);
  EXPECT_GT(one.bytes_held, unit_saliency_cost(architecture, 1, {1, 64, 4}, 4).bytes_held - 1);
}

TEST(UnitSaliency, HoldsTheLogitsOfItsWindowAndNoMore) {
  Architecture architecture = tiny_pruned_model().architecture;
  const auto held = [&](int64_t seqlen) {
    return unit_saliency_cost(architecture, 1, {1, seqlen, 4}, 4).bytes_held;
  };
  architecture.vocab = 100000;                                  // more than a block's work
  const double inputs = 4.0 * 4 * double(architecture.hidden);  // of two blocks, a token
  EXPECT_DOUBLE_EQ(held(17) - held(16), inputs + 3 * 4 * 100000);
}

}  // namespace
}  // namespace coppice
