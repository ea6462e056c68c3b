// |W| against a loop.
#include "stages/scores/magnitude.h"

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>

namespace coppice {
namespace {

TEST(Magnitude, EqualsTheLoopInEveryDtype) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    const at::Tensor weight = at::randn({7, 13}, at::kFloat).to(dtype);
    const at::Tensor score = magnitude_score(weight);
    ASSERT_EQ(score.scalar_type(), at::kFloat);
    ASSERT_EQ(score.sizes(), weight.sizes());
    for (int64_t i = 0; i < 7; ++i) {
      for (int64_t j = 0; j < 13; ++j) {
        EXPECT_EQ(score[i][j].item<float>(), std::abs(weight[i][j].item<float>())) << dtype;
      }
    }
  }
}

TEST(Magnitude, LeavesTheWeightAlone) {
  const at::Tensor weight = at::randn({3, 5}, at::kFloat);
  const at::Tensor before = weight.clone();
  magnitude_score(weight).fill_(0);
  EXPECT_TRUE(weight.equal(before));
}

}  // namespace
}  // namespace coppice
