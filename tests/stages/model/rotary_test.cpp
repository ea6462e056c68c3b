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

/// Of the first five channels; sines of angles below a quarter turn.
double frequency(const RotaryTable& table, int64_t pair) {
  return std::atan2(table.sin[1][pair].item<double>(), table.cos[1][pair].item<double>());
}

TEST(Rotary, LinearDividesEveryFrequency) {
  Rope scaled;
  scaled.kind = RopeKind::kLinear;
  scaled.factor = 2.5;
  const RotaryTable before = table_of({}), after = table_of(scaled);
  for (int64_t pair = 0; pair < kHeadDim / 2; ++pair) {
    EXPECT_NEAR(frequency(before, pair) / frequency(after, pair), 2.5, 1e-4);
  }
}

TEST(Rotary, DynamicIsPlainUpToTheOriginalPositions) {
  Rope rope;
  rope.kind = RopeKind::kDynamic;
  rope.factor = 2.5;
  rope.original_max_position = kPositions;
  EXPECT_THAT(table_of(rope).sin, testing::IsIdenticalTo(table_of({}).sin));
}

TEST(Rotary, DynamicThetaGrowsWithTheSequenceBeyond) {
  Rope rope;
  rope.kind = RopeKind::kDynamic;
  rope.factor = 2.5;
  rope.original_max_position = kPositions / 2;
  Rope grown;
  grown.theta = rope.theta * std::pow(2.5 * 2 - 1.5, kHeadDim / (kHeadDim - 2.0));
  EXPECT_THAT(table_of(rope).cos, IsCloseTo(table_of(grown).cos));
}

TEST(Rotary, YarnKeepsManyTurnsAndDividesFew) {
  Rope rope;
  rope.kind = RopeKind::kYarn;
  rope.factor = 4;
  rope.original_max_position = 64;  // 10, 1.6, 0.26, 0.04, 0.006 turns
  rope.beta_fast = 8;
  const RotaryTable before = table_of({}), after = table_of(rope);
  EXPECT_NEAR(frequency(before, 0) / frequency(after, 0), 1, 1e-5);
  EXPECT_GT(frequency(before, 1) / frequency(after, 1), 1.1);
  EXPECT_LT(frequency(before, 1) / frequency(after, 1), 3.9);
  for (int64_t pair = 2; pair < 5; ++pair) {
    EXPECT_NEAR(frequency(before, pair) / frequency(after, pair), 4, 1e-3);
  }
}

TEST(Rotary, AttentionFactorScalesBothTables) {
  Rope rope;
  rope.attention_factor = 1.5;
  EXPECT_THAT(table_of(rope).cos, IsCloseTo(table_of({}).cos * 1.5));
  EXPECT_THAT(table_of(rope).sin, IsCloseTo(table_of({}).sin * 1.5));
}

TEST(Rotary, NoneHasNoTable) {
  Rope rope;
  rope.kind = RopeKind::kNone;
  EXPECT_FALSE(table_of(rope).cos.defined());
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
