#include "stages/model/norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

constexpr double kEpsilon = 1e-5;

at::Tensor reference_normalize(const at::Tensor& x) {
  return x / (x * x).mean(1, /*keepdim=*/true).add(kEpsilon).sqrt();
}

at::Tensor leaf(const at::Tensor& value) { return value.detach().clone().requires_grad_(true); }

/// Two linears sharing a normalised input, one with a bias; the same values in two sets of leaves.
class NormedLinears : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  const at::TensorOptions options_ = at::TensorOptions(GetParam());
  const at::Tensor x_hat_ = at::randn({11, 7}, options_);
  const at::Tensor gain_ = at::randn({7}, options_);
  const at::Tensor shift_ = at::randn({7}, options_);
  const at::Tensor weight_ = at::randn({5, 7}, options_);
  const at::Tensor other_weight_ = at::randn({3, 7}, options_);
  const at::Tensor bias_ = at::randn({3}, options_);

  struct Leaves {
    at::Tensor x_hat, gain, shift;
    Linear first, second;
  };
  Leaves leaves() const {
    return {leaf(x_hat_),
            leaf(gain_),
            leaf(shift_),
            {leaf(weight_), {}},
            {leaf(other_weight_), leaf(bias_)}};
  }
  static void run(const Leaves& l, const at::Tensor& x_hat) {
    const auto y = normed_linears({x_hat, (l.gain * x_hat + l.shift).detach()}, {l.gain, l.shift},
                                  {&l.first, &l.second});
    (y[0].square().sum() + y[1].exp().sum()).backward();
  }
  static void run_reference(const Leaves& l) {
    const at::Tensor normed = l.gain * l.x_hat + l.shift;
    const at::Tensor y = at::linear(normed, l.first.weight);
    (y.square().sum() + at::linear(normed, l.second.weight, l.second.bias).exp().sum()).backward();
  }
};

TEST_P(NormedLinears, GradientsAreThoseOfTheComposedFormula) {
  const Leaves ours = leaves(), reference = leaves();
  run(ours, ours.x_hat);
  run_reference(reference);
  EXPECT_THAT(ours.first.weight.grad(), IsCloseTo(reference.first.weight.grad()));
  EXPECT_THAT(ours.second.weight.grad(), IsCloseTo(reference.second.weight.grad()));
  EXPECT_THAT(ours.second.bias.grad(), IsCloseTo(reference.second.bias.grad()));
  EXPECT_THAT(ours.gain.grad(), IsCloseTo(reference.gain.grad()));
  EXPECT_THAT(ours.shift.grad(), IsCloseTo(reference.shift.grad()));
  EXPECT_THAT(ours.x_hat.grad(), IsCloseTo(reference.x_hat.grad()));
}

TEST_P(NormedLinears, InputThatAsksForNoGradientGetsNone) {
  const Leaves ours = leaves(), reference = leaves();
  run(ours, x_hat_);
  run_reference(reference);
  EXPECT_FALSE(x_hat_.grad().defined());
  EXPECT_THAT(ours.gain.grad(), IsCloseTo(reference.gain.grad()));
  EXPECT_THAT(ours.first.weight.grad(), IsCloseTo(reference.first.weight.grad()));
}

TEST_P(NormedLinears, GainGradientUsesTheWeightsAsUsed) {
  const Leaves ours = leaves();
  ours.first.weight.detach().zero_();
  ours.second.weight.detach().zero_();
  run(ours, x_hat_);
  EXPECT_EQ(ours.gain.grad().abs().max().item<double>(), 0);
  EXPECT_GT(ours.second.weight.grad().abs().max().item<double>(), 0);
}

// The bias is then the fourth edge of the graph, not the fifth.
TEST_P(NormedLinears, GradientsWithoutAShiftAreThoseOfTheComposedFormula) {
  const Leaves ours = leaves(), reference = leaves();
  const at::Tensor y = normed_linears({x_hat_, gain_ * x_hat_}, {ours.gain, {}}, {&ours.second})[0];
  y.exp().sum().backward();
  at::linear(reference.gain * x_hat_, reference.second.weight, reference.second.bias)
      .exp()
      .sum()
      .backward();
  EXPECT_THAT(ours.second.weight.grad(), IsCloseTo(reference.second.weight.grad()));
  EXPECT_THAT(ours.second.bias.grad(), IsCloseTo(reference.second.bias.grad()));
  EXPECT_THAT(ours.gain.grad(), IsCloseTo(reference.gain.grad()));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, NormedLinears, ::testing::Values(at::kFloat, at::kDouble),
                         [](const auto& test) { return c10::toString(test.param); });

class RmsNormalize : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(RmsNormalize, RowsHaveUnitMeanSquare) {
  const at::Tensor x = (at::randn({9, 37}) * 3).to(GetParam());
  const at::Tensor expected = reference_normalize(x.to(at::kDouble)).to(GetParam());
  EXPECT_THAT(rms_normalize(x, kEpsilon), IsCloseTo(expected));
}

TEST_P(RmsNormalize, GradientIsThatOfTheComposedFormula) {
  const at::Tensor value = at::randn({9, 37}), direction = at::randn({9, 37});
  const at::Tensor x = leaf(value.to(GetParam())), reference = leaf(value.to(at::kDouble));
  rms_normalize(x, kEpsilon).backward(direction.to(GetParam()));
  reference_normalize(reference).backward(direction.to(at::kDouble));
  EXPECT_THAT(x.grad(), IsCloseTo(reference.grad().to(GetParam())));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, RmsNormalize,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& test) { return c10::toString(test.param); });

/// Both kinds, against ten lines.
class Normed : public ::testing::TestWithParam<NormKind> {
 protected:
  const Architecture architecture_ = [] {
    Architecture a;
    a.norm_kind = GetParam();
    a.norm_epsilon = kEpsilon;
    return a;
  }();
  const at::TensorOptions options_ = at::TensorOptions(at::kDouble);
  const at::Tensor x_ = at::randn({9, 37}, options_);
  const Norm norm_{at::randn({37}, options_),
                   GetParam() == NormKind::kLayer ? at::randn({37}, options_) : at::Tensor()};

  at::Tensor reference() const {
    if (GetParam() == NormKind::kRms) return reference_normalize(x_) * norm_.gain;
    const at::Tensor centred = x_ - x_.mean(1, /*keepdim=*/true);
    return reference_normalize(centred) * norm_.gain + norm_.bias;
  }
};

TEST_P(Normed, IsTheFormula) {
  EXPECT_THAT(normed(architecture_, norm_, x_), IsCloseTo(reference()));
}

TEST_P(Normed, RowsForLinearsAreTheSame) {
  EXPECT_THAT(norm_rows(architecture_, norm_, x_).value, IsCloseTo(reference()));
}

TEST_P(Normed, RowsWithoutGainAreTheirXHat) {
  const NormedRows rows = norm_rows(architecture_, norm_, x_);
  const at::Tensor shift = norm_.bias.defined() ? norm_.bias : at::zeros({37}, options_);
  EXPECT_THAT(rows.x_hat * norm_.gain + shift, IsCloseTo(rows.value));
}

TEST_P(Normed, NormsOfAnotherDtypeAreConvertedToThatOfTheRows) {
  const Norm half = converted(norm_, at::kBFloat16);
  EXPECT_THAT(normed(architecture_, half, x_),
              IsCloseTo(normed(architecture_, converted(half, at::kDouble), x_)));
}

INSTANTIATE_TEST_SUITE_P(Kinds, Normed, ::testing::Values(NormKind::kRms, NormKind::kLayer),
                         [](const auto& test) {
                           return test.param == NormKind::kRms ? "Rms" : "Layer";
                         });

}  // namespace
}  // namespace coppice
