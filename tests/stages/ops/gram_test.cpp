#include "stages/ops/gram.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;
using testing::IsIdenticalTo;

at::Tensor gram_of(const std::vector<at::Tensor>& parts) {
  const int64_t in = parts.front().size(1);
  at::Tensor gram = at::zeros({in, in}, parts.front().options().dtype(at::kFloat));
  for (const at::Tensor& x : parts) add_gram(gram, x);
  mirror_gram(gram);
  return gram;
}

// Widths below, at and above those of a strip, and several strips.
TEST(Gram, IsTheSumOfProductsOfEveryPart) {
  for (const int64_t in : {1, 7, 255, 256, 257, 700}) {
    const at::Tensor a = at::randn({11, in}, at::TensorOptions(at::kFloat));
    const at::Tensor b = at::randn({5, in}, at::TensorOptions(at::kFloat));
    const at::Tensor wide = a.to(at::kDouble), more = b.to(at::kDouble);
    const at::Tensor expected = wide.t().mm(wide) + more.t().mm(more);
    EXPECT_THAT(gram_of({a, b}), IsCloseTo(expected.to(at::kFloat))) << in;
  }
}

TEST(Gram, IsExactlySymmetric) {
  const at::Tensor gram = gram_of({at::randn({33, 300}, at::TensorOptions(at::kFloat))});
  EXPECT_THAT(gram, IsIdenticalTo(gram.t().contiguous()));
}

TEST(Gram, HalfPrecisionIsMultipliedInFp32) {
  const at::Tensor x = at::randn({9, 30}, at::TensorOptions(at::kBFloat16));
  EXPECT_THAT(gram_of({x}), IsIdenticalTo(gram_of({x.to(at::kFloat)})));
}

// Products of bf16 are exact in fp32: what differs is the order of their sums.
TEST(Gram, OnAGpuIsThatOfTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  for (const at::ScalarType dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
    for (const int64_t in : {1, 7, 256, 700}) {
      const at::Tensor a = at::randn({11, in}, at::TensorOptions(dtype));
      const at::Tensor b = at::randn({500, in}, at::TensorOptions(dtype));
      const at::Tensor gram = gram_of({a.to(at::kCUDA), b.to(at::kCUDA)});
      EXPECT_THAT(gram.cpu(), IsCloseTo(gram_of({a, b}))) << dtype << " " << in;
    }
  }
}

TEST(Gram, OtherWidthIsRefused) {
  at::Tensor gram = at::zeros({4, 4}, at::TensorOptions(at::kFloat));
  EXPECT_THROW(add_gram(gram, at::zeros({3, 5})), std::invalid_argument);
}

TEST(Gram, FlopIsLittleMoreThanHalfOfAFullProduct) {
  EXPECT_EQ(gram_flop(1, 10), 20);
  EXPECT_EQ(gram_flop(256, 10), 2.0 * 10 * 256 * 256);
  const double full = 2.0 * 10 * 4096 * 4096;
  EXPECT_GT(gram_flop(4096, 10), 0.5 * full);
  EXPECT_LT(gram_flop(4096, 10), 0.54 * full);
}

}  // namespace
}  // namespace coppice
