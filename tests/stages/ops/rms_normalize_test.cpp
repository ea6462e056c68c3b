#include "stages/ops/rms_normalize.h"

#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

TEST(RmsNormalizeRows, EqualsTheLoop) {
  const at::Tensor x = at::randn({5, 37});
  const RmsNormalized output = rms_normalize_rows(x, 1e-3);
  for (int64_t row = 0; row < 5; ++row) {
    double sum = 0;
    for (int64_t i = 0; i < 37; ++i) sum += std::pow(x[row][i].item<double>(), 2);
    const double inverse = 1 / std::sqrt(sum / 37 + 1e-3);
    EXPECT_NEAR(output.inverse_rms[row].item<double>(), inverse, 1e-5 * inverse);
    for (int64_t i = 0; i < 37; ++i) {
      EXPECT_NEAR(output.x_hat[row][i].item<double>(), x[row][i].item<double>() * inverse, 1e-5);
    }
  }
}

TEST(RmsNormalizeRows, Bf16IsTheFp32ResultRounded) {
  const at::Tensor x = at::randn({5, 37}).to(at::kBFloat16);
  const at::Tensor expected = rms_normalize_rows(x.to(at::kFloat), 1e-5).x_hat.to(at::kBFloat16);
  EXPECT_THAT(rms_normalize_rows(x, 1e-5).x_hat, testing::IsIdenticalTo(expected));
}

TEST(RmsNormalizeRows, RowsStridedInMemoryGiveTheSame) {
  const at::Tensor x = at::randn({37, 5}).t();
  EXPECT_THAT(rms_normalize_rows(x, 1e-5).x_hat,
              testing::IsCloseTo(rms_normalize_rows(x.contiguous(), 1e-5).x_hat));
}

}  // namespace
}  // namespace coppice
