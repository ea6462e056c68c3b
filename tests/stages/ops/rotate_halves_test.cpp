#include "stages/ops/rotate_halves.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

struct Angles {
  at::Tensor half = at::randn({9, 5});
  at::Tensor cos = at::cat({half.cos(), half.cos()}, 1);
  at::Tensor sin = at::cat({half.sin(), half.sin()}, 1);
};

class RotateHalves : public ::testing::TestWithParam<Turn> {};

TEST_P(RotateHalves, FusedLoopEqualsTheAtenFormula) {
  const Angles angles;
  const at::Tensor x = at::randn({2, 9, 3, 10}).transpose(1, 2);  // heads side by side
  const at::Tensor in_fp64 = rotate_halves(x.to(at::kDouble), angles.cos.to(at::kDouble),
                                           angles.sin.to(at::kDouble), GetParam());
  const at::Tensor rotated = rotate_halves(x, angles.cos, angles.sin, GetParam());
  EXPECT_THAT(rotated, testing::IsCloseTo(in_fp64.to(at::kFloat)));
  EXPECT_TRUE(rotated.transpose(1, 2).is_contiguous());
}

INSTANTIATE_TEST_SUITE_P(Turns, RotateHalves, ::testing::Values(Turn::kForward, Turn::kBack));

TEST(RotateHalvesOnce, BackUndoesForward) {
  const Angles angles;
  const at::Tensor x = at::randn({2, 3, 9, 10});
  const at::Tensor there = rotate_halves(x, angles.cos, angles.sin, Turn::kForward);
  EXPECT_THAT(rotate_halves(there, angles.cos, angles.sin, Turn::kBack), testing::IsCloseTo(x));
}

TEST(RotateHalvesOnce, Bf16RoundsProductsAndSum) {
  const Angles angles;
  const at::Tensor cos = angles.cos.to(at::kBFloat16), sin = angles.sin.to(at::kBFloat16);
  const at::Tensor x = at::randn({2, 3, 9, 10}).to(at::kBFloat16);
  const at::Tensor first = x.narrow(3, 0, 5), second = x.narrow(3, 5, 5);
  const at::Tensor expected = x.mul(cos).add(at::cat({second.neg(), first}, 3).mul(sin));
  EXPECT_THAT(rotate_halves(x, cos, sin, Turn::kForward).contiguous(),
              testing::IsIdenticalTo(expected));
}

}  // namespace
}  // namespace coppice
