// |W| times column norms against a loop.
#include "stages/scores/wanda.h"

#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Wanda, EqualsTheLoopInEveryDtype) {
  const at::Tensor norm = at::randn({13}, at::kFloat).abs();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor weight = at::randn({7, 13}, at::kFloat).to(dtype);
    const at::Tensor score = wanda_score(weight, norm);
    ASSERT_EQ(score.scalar_type(), at::kFloat);
    ASSERT_EQ(score.sizes(), weight.sizes());
    for (int64_t i = 0; i < 7; ++i) {
      for (int64_t j = 0; j < 13; ++j) {
        const float expected = std::abs(weight[i][j].item<float>()) * norm[j].item<float>();
        EXPECT_EQ(score[i][j].item<float>(), expected) << dtype;
      }
    }
  }
}

TEST(Wanda, DeadColumnsScoreZero) {
  at::Tensor norm = at::randn({5}, at::kFloat).abs();
  norm[2] = 0;
  const at::Tensor score = wanda_score(at::randn({4, 5}, at::kFloat), norm);
  EXPECT_EQ(score.count_nonzero().item<int64_t>(), 4 * 4);
  EXPECT_EQ(score.select(1, 2).count_nonzero().item<int64_t>(), 0);
}

TEST(Wanda, LeavesTheWeightAlone) {
  const at::Tensor weight = at::randn({3, 5}, at::kFloat);
  const at::Tensor before = weight.clone();
  wanda_score(weight, at::randn({5}, at::kFloat));
  EXPECT_TRUE(weight.equal(before));
}

TEST(Wanda, NormOfAnotherLengthIsRefusedWithBothShapes) {
  try {
    wanda_score(at::zeros({4, 5}), at::zeros({4}));
    FAIL() << "accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("[4, 5]"), HasSubstr("[4]")));
  }
}

TEST(Wanda, NormOfAnotherDtypeIsRefused) {
  EXPECT_THROW(wanda_score(at::zeros({4, 5}), at::zeros({5}, at::kDouble)), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
