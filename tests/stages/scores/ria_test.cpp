// The formula against a loop in double precision.
#include "stages/scores/ria.h"

#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>

namespace coppice {
namespace {

double at(const at::Tensor& x, int64_t i, int64_t j) { return x[i][j].item<double>(); }

TEST(Ria, EqualsTheLoopInEveryDtype) {
  const at::Tensor norm = at::randn({13}, at::kFloat).abs();
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor weight = at::randn({7, 13}, at::kFloat).to(dtype);
    const at::Tensor score = ria_score(weight, norm);
    ASSERT_EQ(score.scalar_type(), at::kFloat);
    for (int64_t i = 0; i < 7; ++i) {
      for (int64_t j = 0; j < 13; ++j) {
        double row = 0, column = 0;
        for (int64_t k = 0; k < 13; ++k) row += std::abs(at(weight, i, k));
        for (int64_t k = 0; k < 7; ++k) column += std::abs(at(weight, k, j));
        const double magnitude = std::abs(at(weight, i, j));
        const double expected =
            (magnitude / row + magnitude / column) * std::sqrt(norm[j].item<double>());
        EXPECT_NEAR(at(score, i, j), expected, 1e-5 * expected) << dtype;
      }
    }
  }
}

TEST(Ria, RowsAndColumnsOfZerosScoreZero) {
  at::Tensor weight = at::randn({4, 5}, at::kFloat);
  weight[1].fill_(0);
  weight.select(1, 3).fill_(0);
  const at::Tensor score = ria_score(weight, at::randn({5}, at::kFloat).abs());
  EXPECT_EQ(score.count_nonzero().item<int64_t>(), 3 * 4);
  EXPECT_TRUE(score.isfinite().all().item<bool>());
}

TEST(Ria, DeadColumnsScoreZero) {
  at::Tensor norm = at::randn({5}, at::kFloat).abs();
  norm[2] = 0;
  const at::Tensor score = ria_score(at::randn({4, 5}, at::kFloat), norm);
  EXPECT_EQ(score.select(1, 2).count_nonzero().item<int64_t>(), 0);
}

TEST(Ria, ExponentZeroLeavesTheNormsOut) {
  const at::Tensor weight = at::randn({4, 5}, at::kFloat);
  EXPECT_TRUE(ria_score(weight, at::randn({5}, at::kFloat).abs(), 0)
                  .equal(ria_score(weight, at::zeros({5}).add(1))));
}

TEST(Ria, NormOfAnotherLengthIsRefusedByName) {
  try {
    ria_score(at::zeros({4, 5}), at::zeros({4}));
    FAIL() << "accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("RIA score"));
  }
}

}  // namespace
}  // namespace coppice
