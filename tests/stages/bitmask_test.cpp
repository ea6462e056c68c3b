#include "stages/bitmask.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsIdenticalTo;

TEST(Bitmask, TheFirstColumnIsTheLowestBit) {
  const at::Tensor mask = at::tensor({1, 0, 0, 1, 0, 0, 0, 0, 0, 1}, at::kInt).to(at::kBool);
  EXPECT_THAT(pack_bitmask(mask.view({1, 10})),
              IsIdenticalTo(at::tensor({9, 2}, at::kByte).view({1, 2})));
}

TEST(Bitmask, UnpacksWhatWasPacked) {
  at::manual_seed(1);
  for (const int64_t in : {1, 7, 8, 9, 64, 100}) {
    const at::Tensor mask = at::rand({5, in}).lt(0.5);
    EXPECT_THAT(unpack_bitmask(pack_bitmask(mask), in), IsIdenticalTo(mask)) << in;
  }
}

TEST(Bitmask, AnotherWidthIsRefused) {
  const at::Tensor packed = pack_bitmask(at::rand({5, 20}).lt(0.5));
  EXPECT_THROW(unpack_bitmask(packed, 25), std::invalid_argument);
  EXPECT_THROW(unpack_bitmask(packed.to(at::kInt), 20), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
