#include "stages/ops/column_squares.h"

#include <ATen/Parallel.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

at::Tensor sums_of(const at::Tensor& x) {
  at::Tensor sums = at::zeros({x.size(1)}, at::TensorOptions(at::kDouble));
  add_column_squares(sums, x);
  return sums;
}

class ColumnSquares : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(ColumnSquares, EqualTheLoop) {
  const at::Tensor x = at::randn({13, 70}).to(GetParam());
  const at::Tensor sums = sums_of(x);
  for (int64_t column = 0; column < 70; ++column) {
    double expected = 0;
    for (int64_t token = 0; token < 13; ++token) {
      const float value = x[token][column].item<float>();
      expected += static_cast<double>(value * value);
    }
    EXPECT_NEAR(sums[column].item<double>(), expected, 1e-6 * expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ColumnSquares,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& test) { return c10::toString(test.param); });

TEST(ColumnSquaresSum, AddToWhatIsThere) {
  const at::Tensor x = at::randn({13, 70});
  at::Tensor sums = sums_of(x.narrow(0, 0, 6));
  add_column_squares(sums, x.narrow(0, 6, 7));
  EXPECT_THAT(sums, testing::IsIdenticalTo(sums_of(x)));
}

TEST(ColumnSquaresSum, DoNotDependOnTheNumberOfThreads) {
  const at::Tensor x = at::randn({300, 200});
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const at::Tensor alone = sums_of(x);
  at::set_num_threads(3);
  EXPECT_THAT(sums_of(x), testing::IsIdenticalTo(alone));
  at::set_num_threads(threads);
}

TEST(ColumnSquaresSum, OtherWidthIsRefused) {
  at::Tensor sums = at::zeros({4}, at::TensorOptions(at::kDouble));
  EXPECT_THROW(add_column_squares(sums, at::randn({2, 5})), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
