#include "stages/ops/squared_error.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

class SquaredError : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  at::Tensor output_ = at::randn({11, 37}).to(GetParam());
  const at::Tensor target_ = at::randn({11, 37}).to(GetParam());
};

TEST_P(SquaredError, EqualsTheLoop) {
  double expected = 0;
  for (int64_t row = 0; row < 11; ++row) {
    for (int64_t i = 0; i < 37; ++i) {
      expected += std::pow(output_[row][i].item<double>() - target_[row][i].item<double>(), 2);
    }
  }
  EXPECT_NEAR(squared_error(output_, target_).item<double>(), expected, 1e-5 * expected);
}

TEST_P(SquaredError, GradientTakesThePlaceOfTheOutput) {
  const at::Tensor before = output_.clone();
  const double error = squared_error(output_, target_).item<double>();
  EXPECT_EQ(squared_error_gradient_(output_, target_, 0.25).item<double>(), error);
  const at::Tensor expected = (before.to(at::kDouble) - target_.to(at::kDouble)) * 0.25;
  EXPECT_THAT(output_, testing::IsCloseTo(expected.to(GetParam())));
}

TEST_P(SquaredError, OfNanIsNan) {
  output_[10][36] = NAN;
  EXPECT_TRUE(std::isnan(squared_error(output_, target_).item<double>()));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, SquaredError,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& test) { return c10::toString(test.param); });

TEST(SquaredErrorShapes, ThatDifferAreRefused) {
  EXPECT_THROW(squared_error(at::randn({2, 3}), at::randn({3, 3})), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
