// The kernel's own source, run on the host, against the CPU's sweep: the same bits.
#include "stages/ops/column_sweep_kernel.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>

#include "tests/support/host_team.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::HostTeam;
using testing::IsIdenticalTo;
using testing::Launch;
using testing::run_kernel;
using testing::ThreadOrder;

struct Block {
  at::Tensor weight, errors, keep, factor;

  Block(int64_t out, int64_t columns) {
    weight = at::randn({out, columns}, at::kFloat);
    errors = at::full({out, columns}, NAN, at::kFloat);  // every one is to be written
    keep = at::rand({out, columns}, at::kFloat).gt(0.5);
    factor = at::randn({columns, columns}, at::kFloat).mul_(0.2).triu();
    factor.diagonal().abs_().add_(1);
  }
  Block copy() const {
    Block block = *this;
    block.weight = weight.clone();
    block.errors = errors.clone();
    block.keep = keep.clone();
    return block;
  }
};

/// group_size 0: block.keep is given. Returns how many scores are not finite.
gpu::Count sweep_by_kernel(Block& block, int num_kept, int group_size, const Launch& launch) {
  detail::Sweep sweep{};
  sweep.weight = block.weight.mutable_data_ptr<float>();
  sweep.errors = block.errors.mutable_data_ptr<float>();
  sweep.factor = block.factor.const_data_ptr<float>();
  sweep.rows = block.weight.size(0);
  sweep.columns = static_cast<int>(block.weight.size(1));
  sweep.group_size = group_size;
  sweep.num_pruned = group_size - num_kept;
  if (group_size == 0) {
    sweep.given = block.keep.const_data_ptr<bool>();
  } else {
    sweep.chosen = block.keep.mutable_data_ptr<bool>();
  }
  gpu::Count num_not_finite = 0;
  run_kernel<gpu::SweptRow>(launch, [&](const HostTeam& team, gpu::SweptRow& shared) {
    gpu::sweep_rows(team, shared, sweep, &num_not_finite);
  });
  return num_not_finite;
}

void expect_same_bits(const Block& found, const Block& expected) {
  EXPECT_THAT(found.keep, IsIdenticalTo(expected.keep));
  EXPECT_THAT(found.weight, IsIdenticalTo(expected.weight));
  EXPECT_THAT(found.errors, IsIdenticalTo(expected.errors));
}

/// A warp's threads, one, and more than there are columns; rows fewer and more than teams.
const Launch kLaunches[] = {{1, 1, ThreadOrder::kAscending},
                            {2, 7, ThreadOrder::kDescending},
                            {4, 32, ThreadOrder::kAscending},
                            {3, 32, ThreadOrder::kDescending},
                            {20, 150, ThreadOrder::kAscending}};

class ColumnSweepKernel : public ::testing::TestWithParam<Launch> {
 protected:
  void SetUp() override { at::manual_seed(2); }
};

INSTANTIATE_TEST_SUITE_P(Launches, ColumnSweepKernel, ::testing::ValuesIn(kLaunches),
                         [](const auto& test) {
                           return std::to_string(test.param.num_teams) + "x" +
                                  std::to_string(test.param.num_threads);
                         });

TEST_P(ColumnSweepKernel, GivenMaskIsSweptAsOnTheCpu) {
  for (const auto& [out, columns] : {std::pair{1, 1}, {13, 37}, {5, 128}, {2, 301}}) {
    const Block block(out, columns);
    Block expected = block.copy(), found = block.copy();
    sweep_columns_(expected.weight, expected.errors, expected.keep, expected.factor);
    sweep_by_kernel(found, 0, 0, GetParam());
    expect_same_bits(found, expected);
  }
}

TEST_P(ColumnSweepKernel, GroupsAreChosenAsOnTheCpu) {
  for (const auto& [num_kept, group_size] :
       {std::pair{2, 4}, {1, 2}, {4, 8}, {1, 3}, {5, 7}, {1, 64}, {63, 64}}) {
    const Block block(9, 2 * group_size);
    Block expected = block.copy(), found = block.copy();
    expected.keep =
        sweep_groups_(expected.weight, expected.errors, expected.factor, num_kept, group_size);
    EXPECT_EQ(sweep_by_kernel(found, num_kept, group_size, GetParam()), 0u);
    expect_same_bits(found, expected);
  }
}

TEST_P(ColumnSweepKernel, OfEqualScoresTheLowerColumnsGoAsOnTheCpu) {
  Block block(7, 64);
  block.weight = block.weight.mul(2).trunc();  // few values, of both signs, with zeros of both
  block.factor = at::eye(64, at::kFloat);
  Block expected = block.copy(), found = block.copy();
  expected.keep = sweep_groups_(expected.weight, expected.errors, expected.factor, 2, 4);
  sweep_by_kernel(found, 2, 4, GetParam());
  expect_same_bits(found, expected);
}

TEST_P(ColumnSweepKernel, EveryScoreThatIsNotFiniteIsCountedOnce) {
  Block block(6, 8);
  block.weight[1][6] = NAN;  // of the last group: no score behind them to spread to
  block.weight[4][7] = INFINITY;
  EXPECT_EQ(sweep_by_kernel(block, 2, 4, GetParam()), 2u);
}

}  // namespace
}  // namespace coppice
