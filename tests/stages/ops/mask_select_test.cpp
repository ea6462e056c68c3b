// Masks against sorting, on every device there is: the same bits.
#include "stages/ops/mask_select.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "stages/errors.h"

namespace coppice {
namespace {

using ::testing::HasSubstr;

/// true where kept, when the `count` smallest of every `group` consecutive scores are pruned; ties
/// by lower index.
std::vector<bool> keep_by_sorting(const at::Tensor& scores, int64_t group, int64_t count) {
  const float* score = scores.const_data_ptr<float>();
  std::vector<bool> keep(scores.numel(), true);
  std::vector<int64_t> order(group);
  for (int64_t first = 0; first < scores.numel(); first += group) {
    std::iota(order.begin(), order.end(), first);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return score[a] < score[b]; });
    for (int64_t i = 0; i < count; ++i) keep[order[i]] = false;
  }
  return keep;
}

std::vector<bool> bits(const at::Tensor& mask) {
  const at::Tensor on_cpu = mask.cpu();
  const bool* data = on_cpu.const_data_ptr<bool>();
  return std::vector<bool>(data, data + on_cpu.numel());
}

/// Odd sizes, one row, one column; the last two are longer than a kernel's chunk and a thread's
/// share.
const std::vector<std::vector<int64_t>> kShapes = {{1, 1},  {1, 7},    {5, 1},    {3, 17},
                                                   {8, 64}, {2, 3001}, {31, 4999}};

/// Different everywhere; five values only; one value; of both signs with zeros of both signs.
std::vector<at::Tensor> score_kinds(const std::vector<int64_t>& shape) {
  const at::Tensor normal = at::randn(shape, at::kFloat);
  return {normal.abs(), normal.abs().mul(2).floor().clamp_max(4), at::full(shape, 0.5f, at::kFloat),
          normal.mul(2).trunc()};
}

const double kSparsities[] = {0.0, 0.1, 0.29, 0.5, 0.7, 0.999, 1.0};

class MaskSelect : public ::testing::TestWithParam<at::DeviceType> {
 protected:
  void SetUp() override {
    if (GetParam() == at::kCUDA && !at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(0);
  }
  at::Tensor on_device(const at::Tensor& tensor) const { return tensor.to(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(Devices, MaskSelect, ::testing::Values(at::kCPU, at::kCUDA),
                         [](const auto& param_info) {
                           return param_info.param == at::kCPU ? "Cpu" : "Cuda";
                         });

TEST_P(MaskSelect, RowsEqualSorting) {
  for (const auto& shape : kShapes) {
    for (const at::Tensor& scores : score_kinds(shape)) {
      for (const double sparsity : kSparsities) {
        const at::Tensor mask = keep_mask_by_row(on_device(scores), sparsity);
        EXPECT_EQ(bits(mask), keep_by_sorting(scores, shape[1], num_pruned(sparsity, shape[1])))
            << shape[0] << " x " << shape[1] << " at " << sparsity;
      }
    }
  }
}

TEST_P(MaskSelect, MatrixEqualsSorting) {
  for (const auto& shape : kShapes) {
    for (const at::Tensor& scores : score_kinds(shape)) {
      for (const double sparsity : kSparsities) {
        const int64_t n = scores.numel();
        const at::Tensor mask = keep_mask_by_matrix(on_device(scores), sparsity);
        EXPECT_EQ(bits(mask), keep_by_sorting(scores, n, num_pruned(sparsity, n)))
            << shape[0] << " x " << shape[1] << " at " << sparsity;
      }
    }
  }
}

TEST_P(MaskSelect, GroupsEqualSorting) {
  for (const auto& [num_kept, group_size] :
       {std::pair{2, 4}, {1, 2}, {4, 8}, {1, 3}, {5, 7}, {1, 64}, {63, 64}}) {
    for (const int64_t num_groups : {1, 9, 700}) {
      for (const at::Tensor& scores : score_kinds({3, num_groups * group_size})) {
        const at::Tensor mask = keep_mask_n_of_m(on_device(scores), num_kept, group_size);
        EXPECT_EQ(bits(mask), keep_by_sorting(scores, group_size, group_size - num_kept))
            << num_kept << ":" << group_size << " of " << num_groups << " groups";
      }
    }
  }
}

TEST_P(MaskSelect, MaskHasShapeAndDeviceOfScores) {
  const at::Tensor scores = on_device(at::randn({3, 8}, at::kFloat));
  for (const at::Tensor& mask : {keep_mask_by_row(scores, 0.5), keep_mask_by_matrix(scores, 0.5),
                                 keep_mask_n_of_m(scores, 2, 4)}) {
    EXPECT_EQ(mask.sizes(), scores.sizes());
    EXPECT_EQ(mask.device(), scores.device());
    EXPECT_EQ(mask.scalar_type(), at::kBool);
  }
}

TEST_P(MaskSelect, StridedScoresAreReadByIndex) {
  const at::Tensor scores = at::randn({17, 5}, at::kFloat);
  const at::Tensor transposed = on_device(scores).t();
  EXPECT_EQ(bits(keep_mask_by_row(transposed, 0.4)),
            keep_by_sorting(scores.t().contiguous(), 17, 6));
}

TEST_P(MaskSelect, NotFiniteScoresAreCountedAndRefused) {
  for (const float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    at::Tensor scores = at::randn({4, 8}, at::kFloat);
    scores[1][2] = bad;
    scores[3][7] = -bad;
    scores = on_device(scores);
    const auto expect_refused = [](auto select) {
      try {
        select();
        ADD_FAILURE() << "accepted";
      } catch (const NumericalError& error) {
        EXPECT_THAT(error.what(), HasSubstr("2 of 32"));
      }
    };
    for (const double sparsity : {0.0, 0.5}) {
      expect_refused([&] { keep_mask_by_row(scores, sparsity); });
      expect_refused([&] { keep_mask_by_matrix(scores, sparsity); });
    }
    expect_refused([&] { keep_mask_n_of_m(scores, 2, 4); });
  }
}

TEST_P(MaskSelect, EmptyScoresGiveAnEmptyMask) {
  EXPECT_EQ(keep_mask_by_row(on_device(at::zeros({0, 8})), 0.5).numel(), 0);
  EXPECT_EQ(keep_mask_by_row(on_device(at::zeros({8, 0})), 0.5).numel(), 0);
  EXPECT_EQ(keep_mask_by_matrix(on_device(at::zeros({0, 8})), 0.5).numel(), 0);
  EXPECT_EQ(keep_mask_n_of_m(on_device(at::zeros({0, 8})), 2, 4).numel(), 0);
}

TEST_P(MaskSelect, NumberOfThreadsChangesNoBit) {
  const at::Tensor scores = on_device(at::randn({257, 1021}, at::kFloat).mul(8).floor());
  const int num_threads = at::get_num_threads();
  const auto masks = [&] {
    return std::vector{bits(keep_mask_by_row(scores, 0.6)), bits(keep_mask_by_matrix(scores, 0.6))};
  };
  at::set_num_threads(1);
  const auto with_one = masks();
  at::set_num_threads(3);
  const auto with_three = masks();
  at::set_num_threads(num_threads);
  EXPECT_EQ(with_one, with_three);
}

TEST_P(MaskSelect, WrongScoresAreRefusedWithWhatWasFound) {
  const auto message_of = [](const at::Tensor& scores) -> std::string {
    try {
      keep_mask_by_row(scores, 0.5);
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message_of(on_device(at::zeros({2, 3, 4}))), HasSubstr("[2, 3, 4] in Float"));
  EXPECT_THAT(message_of(on_device(at::zeros({2, 4}, at::kBFloat16))), HasSubstr("in BFloat16"));
}

TEST_P(MaskSelect, PatternsThatDoNotFitAreRefused) {
  const at::Tensor scores = on_device(at::zeros({2, 10}));
  EXPECT_THROW(keep_mask_n_of_m(scores, 2, 4), std::invalid_argument);  // 4 does not divide 10
  EXPECT_THROW(keep_mask_n_of_m(scores, 5, 5), std::invalid_argument);
  EXPECT_THROW(keep_mask_n_of_m(scores, 0, 5), std::invalid_argument);
  EXPECT_THROW(keep_mask_n_of_m(on_device(at::zeros({2, 65})), 1, 65), std::invalid_argument);
}

/// What num_pruned promises, in whole numbers: s = hundredths / 100.
TEST(NumPruned, IsTheFloorOfTheExactProductForEveryHundredth) {
  for (int hundredths = 0; hundredths <= 100; ++hundredths) {
    for (const int64_t n : {0, 1, 3, 10, 100, 576, 1536, 29568, 242221056}) {
      EXPECT_EQ(num_pruned(hundredths / 100.0, n), hundredths * n / 100)
          << hundredths << " of " << n;
    }
  }
}

TEST(NumPruned, FractionsOutsideZeroToOneAreRefused) {
  for (const double sparsity : {-0.1, 1.1, std::nan("")}) {
    EXPECT_THROW(num_pruned(sparsity, 10), std::invalid_argument);
  }
}

}  // namespace
}  // namespace coppice
