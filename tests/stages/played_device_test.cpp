// Every recipe's stages on a device that is not the CPU: nothing of theirs is left behind on the
// host, and a step of training asks the device for nothing.
#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "tests/support/played_backend.h"
#include "tests/support/recipe_cases.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::IsCloseTo;
using ::testing::Pair;
using testing::RecipeCase;
using testing::worked;

constexpr int kWindows = 8;

TEST(PlayedBackend, RefusesTensorsOfTheHostAndCountsWhoAsks) {
  const at::Tensor there = at::ones({1, 3}).to(testing::played_device());
  EXPECT_THROW(there + at::ones({1, 3}), c10::Error);
  EXPECT_THROW(at::linear(there, at::ones({2, 3})), c10::Error);
  testing::take_host_waits();
  EXPECT_EQ((there + at::ones({})).sum().item<float>(), 6);  // a number is no tensor of the host
  EXPECT_THAT(testing::take_host_waits(), ElementsAre(Pair("item", 1)));
  there.nonzero();
  EXPECT_THAT(testing::take_host_waits(), ElementsAre(Pair("aten::nonzero", 1)));
}

class PlayedDevice : public ::testing::TestWithParam<RecipeCase> {};

TEST_P(PlayedDevice, AdaptsAsTheCpuDoes) {
  const auto expected = worked(GetParam(), at::kCPU, kWindows);
  const auto found = worked(GetParam(), testing::played_device(), kWindows);
  ASSERT_EQ(found->variant().adapted.size(), expected->variant().adapted.size());
  for (const auto& [name, tensor] : expected->variant().adapted) {
    const at::Tensor& adapted = found->variant().adapted.at(name);
    EXPECT_EQ(adapted.device(), testing::played_device()) << name;
    const at::Tensor on_host = adapted.to(at::kCPU);
    if (GetParam().is_chaotic) {
      EXPECT_GT(on_host.eq(0).eq(tensor.eq(0)).to(at::kFloat).mean().item<float>(), 0.9) << name;
    } else {
      EXPECT_THAT(on_host, IsCloseTo(tensor)) << name;
    }
  }
}

TEST_P(PlayedDevice, WaitsForTheHostAsOftenHoweverManyStepsItTakes) {
  const auto waits_for = [](int windows) {
    const auto span = testing::span_for(GetParam(), testing::played_device(), windows);
    testing::take_host_waits();
    testing::work(*span, GetParam());
    int sum = 0;
    for (const auto& [operation, count] : testing::take_host_waits()) {
      // How many tokens go to each expert decides the shapes of what follows.
      if (GetParam().has_experts && operation == "copy to the host") continue;
      sum += count;
    }
    return sum;
  };
  // What training improved is judged once more.
  EXPECT_LE(waits_for(3 * kWindows), waits_for(kWindows) + 2);
}

// A whole model that lies there, forward and back, and its evaluation.
TEST(PlayedRetrainer, RetrainsAsTheCpuDoes) {
  const auto validation = [](at::Device device) {
    ResidentModel model = testing::tiny_pruned_model();
    for (auto& [name, tensor] : model.tensors) tensor = tensor.to(device);
    Retrainer trainer(model, testing::counting_text(12, 7).to(device),
                      testing::tiny_retrain_options());
    testing::finish(trainer);
    for (const auto& [name, tensor] : trainer.result(0)) EXPECT_EQ(tensor.device(), device) << name;
    return trainer.progress().validations.back();
  };
  const double expected = validation(at::kCPU);
  EXPECT_NEAR(validation(testing::played_device()), expected, 1e-3 * expected);
}

INSTANTIATE_TEST_SUITE_P(Recipes, PlayedDevice, ::testing::ValuesIn(testing::recipe_cases()),
                         [](const auto& which) { return which.param.name; });

}  // namespace
}  // namespace coppice
