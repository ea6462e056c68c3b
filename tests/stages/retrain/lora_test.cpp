#include "stages/retrain/lora.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;
using testing::IsIdenticalTo;

constexpr int64_t kOut = 7, kIn = 11, kRank = 3;
constexpr double kScale = 2;

struct Pruned {
  at::Tensor weight = at::randn({kOut, kIn});
  LoraFactors factors{at::randn({kRank, kIn}), at::randn({kOut, kRank})};

  Pruned() { weight.masked_fill_(at::randn({kOut, kIn}).gt(0), 0); }
};

TEST(EffectiveWeight, IsWeightAndProductWhereTheWeightIsNotZero) {
  const Pruned pruned;
  const at::Tensor effective = effective_weight(pruned.weight, pruned.factors, kScale, at::kFloat);
  for (int64_t row = 0; row < kOut; ++row) {
    for (int64_t column = 0; column < kIn; ++column) {
      double product = 0;
      for (int64_t k = 0; k < kRank; ++k) {
        product +=
            pruned.factors.b[row][k].item<double>() * pruned.factors.a[k][column].item<double>();
      }
      const double weight = pruned.weight[row][column].item<double>();
      const double expected = weight == 0 ? 0 : weight + kScale * product;
      EXPECT_NEAR(effective[row][column].item<double>(), expected, 1e-5);
    }
  }
}

TEST(EffectiveWeight, ZerosArePositive) {
  Pruned pruned;
  pruned.weight.masked_fill_(pruned.weight.eq(0), -0.0);
  const at::Tensor effective =
      effective_weight(pruned.weight, pruned.factors, kScale, at::kBFloat16);
  const at::Tensor zeros = effective.masked_select(pruned.weight.eq(0)).to(at::kFloat);
  EXPECT_GT(zeros.numel(), 0);
  EXPECT_TRUE(zeros.reciprocal().eq(INFINITY).all().item<bool>());
}

TEST(EffectiveWeight, StartsAtTheWeightItself) {
  const Pruned pruned;
  const at::Tensor stored = pruned.weight.to(at::kBFloat16);
  const LoraFactors start = start_factors(kOut, kIn, kRank, 5, at::kCPU);
  EXPECT_THAT(effective_weight(stored, start, kScale, at::kBFloat16), IsIdenticalTo(stored));
}

TEST(StartFactors, AreDrawnBySeedWithinKaimingsBound) {
  const LoraFactors start = start_factors(kOut, 400, 16, 5, at::kCPU);
  EXPECT_THAT(start_factors(kOut, 400, 16, 5, at::kCPU).a, IsIdenticalTo(start.a));
  EXPECT_FALSE(start_factors(kOut, 400, 16, 6, at::kCPU).a.equal(start.a));
  EXPECT_LE(start.a.abs().max().item<double>(), 1.0 / 20);
  EXPECT_NEAR(start.a.std().item<double>(), 1.0 / 20 / std::sqrt(3), 1e-3);
  EXPECT_NEAR(start.a.mean().item<double>(), 0, 2e-3);
}

TEST(FactorGradients, EqualAutograds) {
  const Pruned pruned;
  const at::Tensor a = pruned.factors.a.clone().requires_grad_(true);
  const at::Tensor b = pruned.factors.b.clone().requires_grad_(true);
  const at::Tensor mask = pruned.weight.ne(0).to(at::kFloat);
  const at::Tensor gradient = at::randn({kOut, kIn});
  (pruned.weight + mask * (kScale * b.mm(a))).backward(gradient);
  const LoraFactors found = factor_gradients(gradient, pruned.weight, pruned.factors, kScale);
  EXPECT_THAT(found.a, IsCloseTo(a.grad()));
  EXPECT_THAT(found.b, IsCloseTo(b.grad()));
}

}  // namespace
}  // namespace coppice
