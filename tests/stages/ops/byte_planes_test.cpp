#include "stages/ops/byte_planes.h"

#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>
#include <vector>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsIdenticalTo;

class BytePlanes : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(BytePlanes, APlaneHasTheSameByteOfEveryElement) {
  const at::Tensor elements = at::randn({3, 5}, at::TensorOptions(at::kFloat)).to(GetParam());
  const at::Tensor planes = split_planes(elements, 15);
  const auto width = int64_t(elements.element_size());
  ASSERT_EQ(planes.sizes(), at::IntArrayRef({width, 15}));
  std::vector<uint8_t> bytes(size_t(width) * 15);
  std::memcpy(bytes.data(), elements.const_data_ptr(), bytes.size());
  for (int64_t plane = 0; plane < width; ++plane) {
    for (int64_t i = 0; i < 15; ++i) {
      EXPECT_EQ(planes[plane][i].item<int>(), bytes[size_t(i * width + plane)]);
    }
  }
}

TEST_P(BytePlanes, ComeTogetherToWhatTheyWere) {
  const at::Tensor elements = at::randn({7, 33}, at::TensorOptions(at::kFloat)).to(GetParam());
  EXPECT_THAT(join_planes(split_planes(elements, 231), {7, 33}, GetParam()),
              IsIdenticalTo(elements));
}

TEST_P(BytePlanes, FewerElementsLeaveZerosBehind) {
  const at::Tensor elements = at::randn({2, 5}, at::TensorOptions(at::kFloat)).to(GetParam());
  const at::Tensor planes = split_planes(elements, 13);
  EXPECT_EQ(planes.narrow(1, 10, 3).count_nonzero().item<int64_t>(), 0);
  EXPECT_THAT(join_planes(planes, {2, 5}, GetParam()), IsIdenticalTo(elements));
}

TEST_P(BytePlanes, ElementsWithStridesAreTakenInTheirOrder) {
  const at::Tensor elements = at::randn({6, 8}, at::TensorOptions(at::kFloat)).to(GetParam()).t();
  EXPECT_THAT(join_planes(split_planes(elements, 48), {8, 6}, GetParam()),
              IsIdenticalTo(elements.contiguous()));
}

TEST_P(BytePlanes, OnAGpuTheyAreThoseOfTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  const at::Tensor elements = at::randn({64, 96}, at::TensorOptions(at::kFloat)).to(GetParam());
  const at::Tensor planes = split_planes(elements.to(at::kCUDA), 6200);
  EXPECT_THAT(planes.cpu(), IsIdenticalTo(split_planes(elements, 6200)));
  EXPECT_THAT(join_planes(planes, {64, 96}, GetParam()).cpu(), IsIdenticalTo(elements));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, BytePlanes,
                         ::testing::Values(at::kBFloat16, at::kHalf, at::kFloat),
                         [](const auto& dtype) { return c10::toString(dtype.param); });

TEST(BytePlanesOf, NothingIsZeros) {
  const at::Tensor none = at::zeros({0, 4}, at::TensorOptions(at::kBFloat16));
  const at::Tensor planes = split_planes(none, 3);
  EXPECT_EQ(planes.count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(join_planes(planes, {0, 4}, at::kBFloat16).numel(), 0);
}

TEST(BytePlanesOf, MoreElementsThanRoomAreRefused) {
  const at::Tensor elements = at::zeros({4}, at::TensorOptions(at::kBFloat16));
  EXPECT_THROW(split_planes(elements, 3), std::invalid_argument);
  EXPECT_THROW(join_planes(split_planes(elements, 4), {5}, at::kBFloat16), std::invalid_argument);
}

TEST(BytePlanesOf, PlanesOfAnotherDtypeAreRefused) {
  const at::Tensor planes = split_planes(at::zeros({4}, at::TensorOptions(at::kBFloat16)), 4);
  EXPECT_THROW(join_planes(planes, {4}, at::kFloat), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
