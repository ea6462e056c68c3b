// Values against loops, gradients against differences.
#include "stages/reconstruct/loss.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

constexpr int64_t kTokens = 5, kWidth = 7;

double loop(Loss loss, const at::Tensor& output, const at::Tensor& target) {
  double sum = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    double squares = 0, yz = 0, yy = 0, zz = 0;
    for (int64_t i = 0; i < kWidth; ++i) {
      const double y = output[t][i].item<double>(), z = target[t][i].item<double>();
      squares += (y - z) * (y - z);
      yz += y * z;
      yy += y * y;
      zz += z * z;
    }
    if (loss == Loss::kMse) sum += squares / kWidth;
    if (loss == Loss::kMseNormalized) sum += squares / zz;
    if (loss == Loss::kCosine) sum += 1 - yz / std::sqrt(yy * zz);
  }
  return sum / kTokens;
}

class WindowLoss : public ::testing::TestWithParam<Loss> {
 protected:
  at::Tensor random(at::ScalarType dtype) { return at::randn({kTokens, kWidth}).to(dtype); }
};

TEST_P(WindowLoss, MeanEqualsTheLoop) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kDouble}) {
    const at::Tensor output = random(dtype), target = random(dtype);
    const at::Tensor sum = loss_sum(GetParam(), output, target);
    EXPECT_EQ(sum.scalar_type(), at::kDouble);
    const double mean = sum.item<double>() / loss_terms(GetParam(), output);
    const double expected = loop(GetParam(), output, target);
    EXPECT_NEAR(mean, expected, 1e-5 * (1 + expected)) << dtype;
  }
}

TEST_P(WindowLoss, GradientIsThatOfTheMean) {
  const at::Tensor output = random(at::kDouble), target = random(at::kDouble);
  at::Tensor gradient = output.clone();
  const at::Tensor sum = loss_gradient_(GetParam(), gradient, target);
  EXPECT_EQ(sum.item<double>(), loss_sum(GetParam(), output, target).item<double>());
  at::Tensor expected = at::zeros({kTokens, kWidth}, at::TensorOptions(at::kDouble));
  constexpr double kStep = 1e-6;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < kWidth; ++i) {
      at::Tensor above = output.clone(), below = output.clone();
      above[t][i].add_(kStep);
      below[t][i].sub_(kStep);
      expected[t][i] =
          (loop(GetParam(), above, target) - loop(GetParam(), below, target)) / (2 * kStep);
    }
  }
  EXPECT_THAT(gradient.to(at::kFloat), IsCloseTo(expected.to(at::kFloat)));
}

TEST_P(WindowLoss, OfTheTargetItselfIsNothing) {
  const at::Tensor target = random(at::kFloat);
  at::Tensor gradient = target.clone();
  EXPECT_NEAR(loss_gradient_(GetParam(), gradient, target).item<double>(), 0, 1e-5);
  EXPECT_LT(gradient.abs().max().item<double>(), 1e-6);
}

TEST_P(WindowLoss, TokensOfZerosStayFinite) {
  at::Tensor output = random(at::kFloat), target = random(at::kFloat);
  target[1].fill_(0);
  output[2].fill_(0);
  EXPECT_TRUE(std::isfinite(loss_gradient_(GetParam(), output, target).item<double>()));
  EXPECT_TRUE(output.isfinite().all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Losses, WindowLoss,
                         ::testing::Values(Loss::kMse, Loss::kCosine, Loss::kMseNormalized));

TEST(Loss, CosineLooksAtDirectionsNormalizedSquaresAtShares) {
  const at::Tensor target = at::randn({kTokens, kWidth});
  EXPECT_NEAR(loss_sum(Loss::kCosine, target * 3, target).item<double>(), 0, 1e-5);
  EXPECT_NEAR(loss_sum(Loss::kMseNormalized, target * 3, target).item<double>(), 4 * kTokens, 1e-4);
}

TEST(Loss, SmallAnglesAreNotLost) {
  at::Tensor target = at::zeros({1, 2}), output = at::zeros({1, 2});
  target[0][0] = 3;
  output[0][0] = 2;
  output[0][1] = 2e-4;  // 1 − cos is half of the angle's square: 5e-9, below what fp32 tells from 1
  EXPECT_NEAR(loss_sum(Loss::kCosine, output, target).item<double>(), 5e-9, 1e-12);
}

}  // namespace
}  // namespace coppice
