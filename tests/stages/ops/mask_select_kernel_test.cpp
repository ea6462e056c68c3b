// The kernels' own source, run on the host, against the CPU's masks: the same bits.
#include "stages/ops/mask_select_kernel.h"

#include <ATen/Context.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include <limits>
#include <utility>
#include <vector>

#include "stages/ops/mask_select.h"
#include "tests/support/host_team.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::HostTeam;
using testing::IsIdenticalTo;
using testing::Launch;
using testing::run_kernel;
using testing::ThreadOrder;

/// One thread; fewer and more threads than teams, columns and digits; as many as a GPU's block has.
const Launch kLaunches[] = {{1, 1, ThreadOrder::kAscending},
                            {2, 5, ThreadOrder::kAscending},
                            {3, 32, ThreadOrder::kDescending},
                            {1, 300, ThreadOrder::kAscending},
                            {1, gpu::kMaskThreads, ThreadOrder::kDescending}};

struct Selected {
  at::Tensor keep;
  gpu::Count num_not_finite = 0;
};

Selected select_rows(const at::Tensor& scores, int64_t rows, int64_t count, const Launch& launch) {
  Selected selected{at::empty(scores.sizes(), at::kBool)};
  const gpu::MaskRows task{scores.const_data_ptr<float>(),
                           rows,
                           scores.numel() / rows,
                           static_cast<unsigned>(count),
                           selected.keep.mutable_data_ptr<bool>(),
                           &selected.num_not_finite};
  run_kernel<gpu::MaskShared>(launch, [&](const HostTeam& team, gpu::MaskShared& shared) {
    gpu::mask_rows(team, shared, task);
  });
  return selected;
}

Selected select_in_matrix(const at::Tensor& scores, int64_t count, const Launch& launch) {
  Selected selected{at::empty(scores.sizes(), at::kBool)};
  std::vector<unsigned> histograms(size_t(gpu::kDigits * gpu::kDigitValues)),
      ties(size_t(launch.num_teams));
  const gpu::MaskMatrix task{scores.const_data_ptr<float>(),
                             scores.numel(),
                             static_cast<unsigned>(count),
                             selected.keep.mutable_data_ptr<bool>(),
                             &selected.num_not_finite,
                             histograms.data(),
                             ties.data()};
  const auto run = [&](auto kernel) {
    run_kernel<gpu::MaskShared>(
        launch, [&](const HostTeam& team, gpu::MaskShared& shared) { kernel(team, shared); });
  };
  for (int digit = 0; digit < gpu::kDigits; ++digit) {
    run([&](const HostTeam& team, gpu::MaskShared& shared) {
      gpu::count_digit_of_matrix(team, shared, task, digit);
    });
  }
  run([&](const HostTeam& team, gpu::MaskShared& shared) {
    gpu::count_ties_of_matrix(team, shared, task);
  });
  run([&](const HostTeam& team, gpu::MaskShared& shared) { gpu::mask_matrix(team, shared, task); });
  return selected;
}

Selected select_groups(const at::Tensor& scores, int count, int group_size, const Launch& launch) {
  Selected selected{at::empty(scores.sizes(), at::kBool)};
  const gpu::MaskGroups task{
      scores.const_data_ptr<float>(),         scores.numel(),          count, group_size,
      selected.keep.mutable_data_ptr<bool>(), &selected.num_not_finite};
  struct Nothing {};
  run_kernel<Nothing>(launch,
                      [&](const HostTeam& team, Nothing&) { gpu::mask_groups(team, task); });
  return selected;
}

/// Different everywhere; five values only; one value; of both signs with zeros of both signs.
std::vector<at::Tensor> score_kinds(at::IntArrayRef shape) {
  const at::Tensor normal = at::randn(shape, at::kFloat);
  return {normal.abs(), normal.abs().mul(2).floor().clamp_max(4), at::full(shape, 0.5f, at::kFloat),
          normal.mul(2).trunc()};
}

class MaskSelectKernel : public ::testing::TestWithParam<Launch> {
 protected:
  void SetUp() override { at::manual_seed(0); }
};

INSTANTIATE_TEST_SUITE_P(Launches, MaskSelectKernel, ::testing::ValuesIn(kLaunches),
                         [](const auto& test) {
                           return std::to_string(test.param.num_teams) + "x" +
                                  std::to_string(test.param.num_threads);
                         });

const std::vector<std::vector<int64_t>> kShapes = {{1, 1}, {3, 1}, {5, 17}, {2, 301}};
const double kSparsities[] = {0.0, 0.29, 0.5, 1.0};

TEST_P(MaskSelectKernel, RowsHaveTheBitsOfTheCpu) {
  for (const auto& shape : kShapes) {
    for (const at::Tensor& scores : score_kinds(shape)) {
      for (const double sparsity : kSparsities) {
        const Selected selected =
            select_rows(scores, shape[0], num_pruned(sparsity, shape[1]), GetParam());
        EXPECT_THAT(selected.keep, IsIdenticalTo(keep_mask_by_row(scores, sparsity)))
            << shape[0] << " x " << shape[1] << " at " << sparsity;
        EXPECT_EQ(selected.num_not_finite, 0u);
      }
    }
  }
}

TEST_P(MaskSelectKernel, MatrixHasTheBitsOfTheCpu) {
  for (const auto& shape : {std::vector<int64_t>{13, 131}, {1, 2}}) {
    for (const at::Tensor& scores : score_kinds(shape)) {
      for (const double sparsity : kSparsities) {
        const Selected selected =
            select_in_matrix(scores, num_pruned(sparsity, scores.numel()), GetParam());
        EXPECT_THAT(selected.keep, IsIdenticalTo(keep_mask_by_matrix(scores, sparsity)))
            << sparsity;
        EXPECT_EQ(selected.num_not_finite, 0u);
      }
    }
  }
}

TEST_P(MaskSelectKernel, GroupsHaveTheBitsOfTheCpu) {
  for (const auto& [num_kept, group_size] :
       {std::pair{2, 4}, {1, 2}, {4, 8}, {1, 3}, {5, 7}, {1, 64}, {63, 64}}) {
    for (const at::Tensor& scores : score_kinds({3, 5 * group_size})) {
      const Selected selected =
          select_groups(scores, group_size - num_kept, group_size, GetParam());
      EXPECT_THAT(selected.keep, IsIdenticalTo(keep_mask_n_of_m(scores, num_kept, group_size)))
          << num_kept << ":" << group_size;
      EXPECT_EQ(selected.num_not_finite, 0u);
    }
  }
}

TEST_P(MaskSelectKernel, EveryScoreThatIsNotFiniteIsCountedOnce) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    at::Tensor scores = at::randn({6, 40}, at::kFloat);
    scores[1][2] = bad;
    scores[1][39] = bad;
    scores[5][0] = -bad;
    EXPECT_EQ(select_rows(scores, 6, 20, GetParam()).num_not_finite, 3u);
    EXPECT_EQ(select_rows(scores, 6, 0, GetParam()).num_not_finite, 3u);
    EXPECT_EQ(select_in_matrix(scores, 120, GetParam()).num_not_finite, 3u);
    EXPECT_EQ(select_groups(scores, 2, 4, GetParam()).num_not_finite, 3u);
  }
}

}  // namespace
}  // namespace coppice
