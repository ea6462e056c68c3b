// A plain loop in doubles holds the sweep, on every device there is.
#include "stages/ops/column_sweep.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "stages/errors.h"
#include "stages/ops/mask_select.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::HasSubstr;
using testing::IsCloseTo;
using testing::IsIdenticalTo;

/// A lazy block, and what a sweep makes of it.
struct Block {
  at::Tensor weight, errors, keep, factor;

  explicit Block(int64_t out = 13, int64_t columns = 36) {
    at::manual_seed(1);
    weight = at::randn({out, columns}, at::kFloat);
    errors = at::full({out, columns}, NAN, at::kFloat);  // every one is to be written
    keep = at::rand({out, columns}, at::kFloat).gt(0.5);
    factor = at::randn({columns, columns}, at::kFloat).mul_(0.2).triu();
    factor.diagonal().abs_().add_(1);
  }

  Block on(at::Device device) const {
    Block copy = *this;
    for (at::Tensor* tensor : {&copy.weight, &copy.errors, &copy.keep, &copy.factor}) {
      *tensor = tensor->clone().to(device);
    }
    return copy;
  }

  /// Each returns a new block, on the CPU.
  Block swept(at::Device device = at::kCPU) const {
    Block block = on(device);
    sweep_columns_(block.weight, block.errors, block.keep, block.factor);
    return block.on(at::kCPU);
  }
  Block swept_in_groups(int num_kept, int group_size, at::Device device = at::kCPU) const {
    Block block = on(device);
    block.keep = sweep_groups_(block.weight, block.errors, block.factor, num_kept, group_size);
    return block.on(at::kCPU);
  }
};

void expect_same_bits(const Block& found, const Block& expected) {
  EXPECT_THAT(found.keep, IsIdenticalTo(expected.keep));
  EXPECT_THAT(found.weight, IsIdenticalTo(expected.weight));
  EXPECT_THAT(found.errors, IsIdenticalTo(expected.errors));
}

/// Corrects `w` and `errors` (doubles) for what is pruned in column j.
void sweep_column(at::Tensor& w, at::Tensor& errors, const Block& block, int64_t j) {
  for (int64_t i = 0; i < w.size(0); ++i) {
    if (block.keep[i][j].item<bool>()) continue;
    const double error = w[i][j].item<double>() / block.factor[j][j].item<double>();
    errors[i][j] = error;
    w[i][j] = 0;
    for (int64_t k = j + 1; k < w.size(1); ++k) w[i][k].sub_(block.factor[j][k], error);
  }
}

class ColumnSweep : public ::testing::TestWithParam<at::DeviceType> {
 protected:
  void SetUp() override {
    if (GetParam() == at::kCUDA && !at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  }
};

INSTANTIATE_TEST_SUITE_P(Devices, ColumnSweep, ::testing::Values(at::kCPU, at::kCUDA),
                         [](const auto& test) { return test.param == at::kCPU ? "Cpu" : "Cuda"; });

TEST_P(ColumnSweep, EqualsTheLoop) {
  const Block block;
  at::Tensor w = block.weight.to(at::kDouble).clone(), errors = at::zeros_like(w);
  for (int64_t j = 0; j < 36; ++j) sweep_column(w, errors, block, j);
  const Block swept = block.swept(GetParam());
  EXPECT_THAT(swept.weight, IsCloseTo(w.to(at::kFloat)));
  EXPECT_THAT(swept.errors, IsCloseTo(errors.to(at::kFloat)));
}

TEST_P(ColumnSweep, GroupsEqualTheLoop) {
  for (const auto& [num_kept, group_size] : {std::pair{2, 4}, {1, 2}, {4, 9}, {35, 36}}) {
    Block block;
    at::Tensor w = block.weight.to(at::kDouble).clone(), errors = at::zeros_like(w);
    const at::Tensor diagonal = block.factor.diagonal().to(at::kDouble);
    for (int64_t j = 0; j < 36; ++j) {
      if (j % group_size == 0) {  // of the weights as they are now
        const at::Tensor scores = w.div(diagonal).square().narrow(1, j, group_size);
        block.keep.narrow(1, j, group_size)
            .copy_(keep_mask_n_of_m(scores.to(at::kFloat), num_kept, group_size));
      }
      sweep_column(w, errors, block, j);
    }
    const Block swept = block.swept_in_groups(num_kept, group_size, GetParam());
    EXPECT_THAT(swept.keep, IsIdenticalTo(block.keep)) << num_kept << ":" << group_size;
    EXPECT_THAT(swept.weight, IsCloseTo(w.to(at::kFloat))) << num_kept << ":" << group_size;
    EXPECT_THAT(swept.errors, IsCloseTo(errors.to(at::kFloat))) << num_kept << ":" << group_size;
  }
}

TEST_P(ColumnSweep, OfEqualScoresTheLowerColumnsGo) {
  Block block(2, 8);
  block.weight.fill_(-3);
  block.factor = at::eye(8, at::kFloat);  // corrects nothing
  const at::Tensor keep = block.swept_in_groups(1, 4, GetParam()).keep;
  for (int64_t j = 0; j < 8; ++j) EXPECT_EQ(keep[1][j].item<bool>(), j % 4 == 3) << j;
}

TEST_P(ColumnSweep, EmptyWeightsAreSwept) {
  EXPECT_EQ(Block(0, 8).swept(GetParam()).weight.numel(), 0);
  EXPECT_EQ(Block(0, 8).swept_in_groups(2, 4, GetParam()).keep.numel(), 0);
}

TEST_P(ColumnSweep, StridedFactorsAreReadByIndex) {
  Block block(5, 16);
  const Block expected = block.swept(GetParam());
  const at::Tensor wide = at::zeros({16, 40}, at::kFloat);
  wide.narrow(1, 8, 16).copy_(block.factor);
  block.factor = wide.narrow(1, 8, 16);
  expect_same_bits(block.swept(GetParam()), expected);
}

TEST_P(ColumnSweep, ScoresThatAreNotFiniteAreRefused) {
  Block block(4, 8);
  block.weight[2][6] = INFINITY;  // of the last group: no score behind it to spread to
  try {
    block.swept_in_groups(2, 4, GetParam());
    ADD_FAILURE() << "accepted";
  } catch (const NumericalError& error) {
    EXPECT_THAT(error.what(), HasSubstr("scores"));
    EXPECT_THAT(error.what(), HasSubstr("1 of 32"));
  }
}

TEST(ColumnSweepOnCpu, NumberOfThreadsChangesNoBit) {
  const Block block(200, 64);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const Block alone = block.swept(), alone_in_groups = block.swept_in_groups(2, 4);
  at::set_num_threads(3);
  const Block together = block.swept(), together_in_groups = block.swept_in_groups(2, 4);
  at::set_num_threads(before);
  expect_same_bits(together, alone);
  expect_same_bits(together_in_groups, alone_in_groups);
}

TEST(ColumnSweepOnCpu, ASumIsRoundedOnce) {
  Block block(1, 2);
  block.keep = at::zeros({1, 2}, at::kBool);
  block.keep[0][1] = true;
  block.weight[0][0] = 1 + std::ldexp(1.0, -12);
  block.weight[0][1] = 1 + std::ldexp(1.0, -11);
  block.factor[0][0] = 1;
  block.factor[0][1] = 1 + std::ldexp(1.0, -12);  // the product ends in 2⁻²⁴, fp32 in 2⁻²³
  EXPECT_EQ(block.swept().weight[0][1].item<float>(), -std::ldexp(1.0f, -24));
}

TEST(ColumnSweepOnCpu, WiderBlocksThanAGpuHoldsAreRefusedWithTheirWidth) {
  try {
    Block(1, kMaxSweepColumns + 1).swept();
    ADD_FAILURE() << "accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), HasSubstr("found 1025"));
  }
}

TEST(ColumnSweepOnCpu, PatternsThatDoNotFitAreRefused) {
  const Block block(2, 10);
  EXPECT_THROW(block.swept_in_groups(2, 4), std::invalid_argument);  // 4 does not divide 10
  EXPECT_THROW(block.swept_in_groups(5, 5), std::invalid_argument);
  EXPECT_THROW(block.swept_in_groups(0, 5), std::invalid_argument);
}

TEST(ColumnSweepOnGpu, HasTheBitsOfTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  const Block block(200, 128), widest(3, kMaxSweepColumns);
  expect_same_bits(block.swept(at::kCUDA), block.swept());
  expect_same_bits(block.swept_in_groups(2, 4, at::kCUDA), block.swept_in_groups(2, 4));
  expect_same_bits(widest.swept_in_groups(4, 8, at::kCUDA), widest.swept_in_groups(4, 8));
}

}  // namespace
}  // namespace coppice
