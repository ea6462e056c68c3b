// The MLP half with experts against a loop over tokens: values, gradients, what linears read.
#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/topk.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "stages/model/block_forward.h"
#include "stages/model/norm.h"
#include "tests/support/tiny_moe.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;
using testing::TinySpan;

constexpr int64_t kTokens = 9;

struct Mixture {
  Architecture architecture = testing::tiny_moe();
  BlockWeights weights = (at::manual_seed(4), testing::random_block(architecture, at::kFloat));
  at::Tensor x = at::randn({kTokens, architecture.hidden});

  void require_gradients() {
    for (auto& [role, linear] : weights.linears) linear.weight.requires_grad_(true);
    weights.norms.at("before_mlp").gain.requires_grad_(true);
    x.requires_grad_(true);
  }

  at::Tensor expert(int64_t number, const at::Tensor& row) const {
    const auto output = [&](const char* part, const at::Tensor& input) {
      const Linear& linear = weights.linears.at(role_of_expert(part, number));
      return at::linear(input, linear.weight, linear.bias);
    };
    return output("down", at::silu(output("gate", row)) * output("up", row));
  }

  /// Token by token, by ATen's own operations.
  at::Tensor reference() const {
    std::vector<at::Tensor> rows;
    const at::Tensor normed =
        weights.norms.at("before_mlp").gain *
        (x * (x.square().mean({1}, true) + architecture.norm_epsilon).rsqrt());
    for (int64_t token = 0; token < kTokens; ++token) {
      const at::Tensor row = normed[token];
      const at::Tensor logits = at::linear(row.unsqueeze(0), weights.router)[0];
      auto [weight, chosen] = at::topk(at::softmax(logits, 0), architecture.experts.per_token);
      weight = weight / weight.sum();
      at::Tensor sum = x[token];
      for (int64_t i = 0; i < architecture.experts.per_token; ++i) {
        sum = sum + weight[i] * expert(chosen[i].item<int64_t>(), row);
      }
      rows.push_back(sum);
    }
    return at::stack(rows);
  }

  at::Tensor output(const InputObserver& observe = {}) const {
    return mlp_half(architecture, weights, {x, {int(kTokens)}}, observe);
  }
};

TEST(Mixture, EqualsTheLoopOverTokens) {
  const Mixture mixture;
  EXPECT_THAT(mixture.output(), IsCloseTo(mixture.reference()));
}

// Through the experts and through the weights that the router gives them.
TEST(Mixture, GradientsEqualThoseOfTheLoop) {
  Mixture ours, loop;
  const at::Tensor direction = at::randn({kTokens, ours.architecture.hidden});
  ours.require_gradients();
  loop.require_gradients();
  ours.output().backward(direction);
  loop.reference().backward(direction);
  EXPECT_THAT(ours.x.grad(), IsCloseTo(loop.x.grad()));
  EXPECT_THAT(ours.weights.norms.at("before_mlp").gain.grad(),
              IsCloseTo(loop.weights.norms.at("before_mlp").gain.grad()));
  for (const auto& [role, linear] : loop.weights.linears) {
    if (role.find('.') == std::string::npos) continue;  // of the attention half
    const at::Tensor& gradient = ours.weights.linears.at(role).weight.grad();
    ASSERT_EQ(gradient.defined(), linear.weight.grad().defined()) << role;
    if (gradient.defined()) EXPECT_THAT(gradient, IsCloseTo(linear.weight.grad())) << role;
  }
}

TEST(Mixture, TellsWhatEveryExpertReadsOnce) {
  const Mixture mixture;
  std::map<std::string, int64_t> rows;
  mixture.output([&](const std::string& input, const at::Tensor& x) {
    EXPECT_TRUE(rows.emplace(input, x.size(0)).second) << input;
    const bool is_units = input.ends_with("_units");
    EXPECT_EQ(x.size(1), is_units ? mixture.architecture.ffn : mixture.architecture.hidden);
  });
  EXPECT_EQ(rows.size(), 10u);
  int64_t routed = 0;
  for (int expert = 0; expert < 5; ++expert) {
    const std::string name = "expert_" + std::to_string(expert);
    EXPECT_EQ(rows.at(name + "_in"), rows.at(name + "_units"));
    routed += rows.at(name + "_in");
  }
  EXPECT_EQ(routed, kTokens * mixture.architecture.experts.per_token);
}

TEST(Mixture, AnExpertWithoutTokensReadsNothingAndGetsNoGradient) {
  TinySpan span(testing::tiny_moe(), 2, at::kFloat, at::kFloat);
  testing::starve_the_last_expert(span);
  Mixture mixture;
  mixture.weights = span.job.dense[0];
  mixture.require_gradients();
  int64_t rows = -1;
  mixture
      .output([&](const std::string& input, const at::Tensor& x) {
        if (input == "expert_4_in") rows = x.size(0);
      })
      .sum()
      .backward();
  EXPECT_EQ(rows, 0);
  EXPECT_FALSE(mixture.weights.linears.at("up.4").weight.grad().defined());
  EXPECT_TRUE(mixture.weights.linears.at("up.0").weight.grad().defined());
}

}  // namespace
}  // namespace coppice
