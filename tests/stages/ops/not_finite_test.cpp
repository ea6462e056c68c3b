#include "stages/ops/not_finite.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>

#include "tests/support/played_backend.h"

namespace coppice {
namespace {

class NotFinite : public ::testing::TestWithParam<at::Device> {
 protected:
  int64_t count(const at::Tensor& x) const {
    at::Tensor found;
    add_not_finite(found, x.to(GetParam()));
    return found.item<int64_t>();
  }
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInfinity = std::numeric_limits<float>::infinity();

TEST_P(NotFinite, NanAndInfinitiesOfEitherSignAreCounted) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    at::Tensor x = at::randn({301, 1003}).to(dtype);  // more than a thread's share
    EXPECT_EQ(count(x), 0) << dtype;
    x[0][0] = kNan;
    x[150][1002] = kInfinity;
    x[300][1002] = -kInfinity;
    EXPECT_EQ(count(x), 3) << dtype;
    EXPECT_EQ(count(x.t()), 3) << dtype;
  }
}

TEST_P(NotFinite, TheLargestNumbersAreFinite) {
  EXPECT_EQ(count(at::zeros({5}).add(std::numeric_limits<float>::max())), 0);
  EXPECT_EQ(count(at::zeros({5}).add(-65504).to(at::kHalf)), 0);
  EXPECT_EQ(count(at::zeros({5}).add(65536).to(at::kHalf)), 5);
}

TEST_P(NotFinite, AsManyAsThereAreElements) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    EXPECT_EQ(count(at::zeros({70'000}).add(kNan).to(dtype)), 70'000) << dtype;
    EXPECT_EQ(count(at::zeros({0}).to(dtype)), 0) << dtype;
  }
}

TEST_P(NotFinite, CountsAddUp) {
  at::Tensor sum;
  for (int i = 0; i < 3; ++i) add_not_finite(sum, at::zeros({2}).add(kNan).to(GetParam()));
  EXPECT_EQ(sum.item<int64_t>(), 6);
  EXPECT_EQ(sum.device(), GetParam());
}

INSTANTIATE_TEST_SUITE_P(Devices, NotFinite,
                         ::testing::Values(at::Device(at::kCPU), testing::played_device()),
                         [](const auto& device) {
                           return device.param.is_cpu() ? "cpu" : "played";
                         });

TEST(NotFiniteNumbers, OtherDtypesAreRefused) {
  at::Tensor count;
  EXPECT_THROW(add_not_finite(count, at::zeros({2}, at::kDouble)), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
