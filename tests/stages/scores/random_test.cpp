#include "stages/scores/random.h"

#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

namespace coppice {
namespace {

TEST(Random, OneSeedIsOneScore) {
  const at::Tensor weight = at::zeros({40, 50}, at::TensorOptions(at::kBFloat16));
  const at::Tensor score = random_score(weight, 3);
  EXPECT_EQ(score.scalar_type(), at::kFloat);
  EXPECT_EQ(score.sizes(), weight.sizes());
  EXPECT_TRUE(score.equal(random_score(weight, 3)));
  EXPECT_FALSE(score.equal(random_score(weight, 4)));
}

TEST(Random, SpreadsOverTheUnitInterval) {
  const at::Tensor score = random_score(at::zeros({100, 100}), 1);
  EXPECT_GE(score.min().item<float>(), 0);
  EXPECT_LT(score.max().item<float>(), 1);
  EXPECT_NEAR(score.mean().item<float>(), 0.5, 0.02);
  EXPECT_NEAR(score.var().item<float>(), 1.0 / 12, 0.005);
}

}  // namespace
}  // namespace coppice
