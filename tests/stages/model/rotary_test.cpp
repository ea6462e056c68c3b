#include "stages/model/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

constexpr int64_t kHeadDim = 10, kPositions = 40;

RotaryTable table_of(const Rope& rope, at::ScalarType dtype = at::kFloat) {
  return make_rotary_table(rope, kHeadDim, kPositions, dtype, at::kCPU);
}

TEST(Rotary, TableHoldsCosinesOfPositionTimesFrequency) {
  Rope rope;
  rope.theta = 500;
  const RotaryTable table = table_of(rope);
  for (int64_t position = 0; position < kPositions; ++position) {
    for (int64_t i = 0; i < kHeadDim; ++i) {
      const int64_t pair = i % (kHeadDim / 2);
      const double angle = position * std::pow(500.0, -2.0 * pair / kHeadDim);
      EXPECT_NEAR(table.cos[position][i].item<double>(), std::cos(angle), 1e-5);
      EXPECT_NEAR(table.sin[position][i].item<double>(), std::sin(angle), 1e-5);
    }
  }
}

TEST(Rotary, Llama3KeepsShortWavelengthsAndStretchesLongOnes) {
  Rope plain;
  Rope scaled = plain;
  scaled.kind = RopeKind::kLlama3;
  scaled.factor = 8;
  scaled.original_max_position = 64;
  // Wavelengths 6, 40, 250, 1577, 9953: under 64/4 kept, over 64 stretched, 40 between.
  const at::Tensor before = table_of(plain).sin[1].asin(), after = table_of(scaled).sin[1].asin();
  const at::Tensor ratio = before / after;
  EXPECT_NEAR(ratio[0].item<double>(), 1, 1e-5);
  EXPECT_GT(ratio[1].item<double>(), 1.1);
  EXPECT_LT(ratio[1].item<double>(), 7.9);
  for (int64_t pair = 2; pair < 5; ++pair) EXPECT_NEAR(ratio[pair].item<double>(), 8, 1e-3);
}

TEST(Rotary, RotatesByHalves) {
  const RotaryTable table = table_of({});
  const at::Tensor x = at::randn({2, 3, 9, kHeadDim});
  const at::Tensor first = x.narrow(3, 0, 5), second = x.narrow(3, 5, 5);
  const at::Tensor half_turned = at::cat({second.neg(), first}, 3);
  const at::Tensor cos = table.cos.narrow(0, 0, 9), sin = table.sin.narrow(0, 0, 9);
  EXPECT_THAT(rotate(x, table), IsCloseTo(x * cos + half_turned * sin));
}

TEST(Rotary, GradientTurnsBack) {
  const RotaryTable table = table_of({});
  const at::Tensor x = at::randn({1, 2, 9, kHeadDim}).requires_grad_(true);
  const at::Tensor y = rotate(x, table);
  y.backward(y.detach());  // the turn is orthogonal: turning its own output back gives x
  EXPECT_THAT(x.grad(), IsCloseTo(x.detach()));
}

TEST(Rotary, SequenceLongerThanTheTableIsRefused) {
  const at::Tensor x = at::randn({1, 1, kPositions + 1, kHeadDim});
  EXPECT_THROW(rotate(x, table_of({})), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
