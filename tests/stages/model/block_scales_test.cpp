#include "stages/model/block_scales.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsIdenticalTo;

// The last block of a row and of a column is a part of one.
constexpr int64_t kOut = 21, kIn = 13;
const ScaleBlock kBlock{8, 5};

struct Weight {
  at::Tensor values = (at::manual_seed(5), at::randn({kOut, kIn}).mul(50).to(at::kFloat8_e4m3fn));
  at::Tensor scales = at::rand({3, 3}).add(0.01);
};

TEST(BlockScales, EveryWeightIsMultipliedByTheScaleOfItsBlockAndRoundedOnce) {
  const Weight weight;
  at::Tensor expected = at::empty({kOut, kIn}, at::kBFloat16);
  for (int64_t i = 0; i < kOut; ++i) {
    for (int64_t j = 0; j < kIn; ++j) {
      const float value = weight.values[i][j].to(at::kFloat).item<float>();
      const float scale = weight.scales[i / kBlock.rows][j / kBlock.columns].item<float>();
      expected[i][j] = c10::BFloat16(value * scale);
    }
  }
  EXPECT_THAT(widened_fp8(weight.values, weight.scales, kBlock), IsIdenticalTo(expected));
}

TEST(BlockScales, ABlockMayBeLargerThanTheWeight) {
  const Weight weight;
  const at::Tensor scale = weight.scales.narrow(0, 0, 1).narrow(1, 0, 1);
  EXPECT_THAT(widened_fp8(weight.values, scale, {128, 128}),
              IsIdenticalTo((weight.values.to(at::kFloat) * scale).to(at::kBFloat16)));
}

TEST(BlockScales, ScalesCoverTheWeightBlockByBlock) {
  const Weight weight;
  EXPECT_THROW(widened_fp8(weight.values, weight.scales.narrow(1, 0, 2), kBlock),
               std::invalid_argument);
}

}  // namespace
}  // namespace coppice
