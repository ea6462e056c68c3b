// Lazy blocks in fp32 against a plain loop, column by column, in double precision.
#include "stages/scores/sparsegpt.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/inverse.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "stages/ops/mask_select.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

constexpr double kDamping = 0.01;

at::Tensor doubles(at::IntArrayRef shape) {
  return at::zeros(shape, at::TensorOptions(at::kDouble));
}

/// Correlated inputs, or there is nothing to make up for.
at::Tensor gram_of(int64_t in, int seed) {
  at::manual_seed(static_cast<uint64_t>(seed));
  const at::Tensor mix = at::randn({in, in}).add_(at::eye(in), 3);
  const at::Tensor x = at::randn({4 * in, in}).mm(mix);
  return x.t().mm(x);
}

at::Tensor nothing_dead(int64_t in) { return at::zeros({in}, at::TensorOptions(at::kBool)); }

/// Prunes the scores of columns [first, last) of the weights as they are now.
void choose(const std::vector<std::vector<double>>& w, const std::vector<std::vector<double>>& u,
            int64_t first, int64_t last, int64_t count_of_group, bool by_row,
            std::vector<std::vector<bool>>& keep) {
  struct Score {
    double value;
    size_t row;
    int64_t column;
  };
  std::vector<std::vector<Score>> groups(by_row ? w.size() : 1);
  for (size_t i = 0; i < w.size(); ++i) {
    for (int64_t j = first; j < last; ++j) {
      const double score = w[i][j] * w[i][j] / (u[j][j] * u[j][j]);
      groups[by_row ? i : 0].push_back({score, i, j});
    }
  }
  for (auto& group : groups) {
    std::stable_sort(group.begin(), group.end(),
                     [](const Score& a, const Score& b) { return a.value < b.value; });
    for (int64_t k = 0; k < count_of_group; ++k) keep[group[k].row][group[k].column] = false;
  }
}

/// The paper's algorithm without its laziness: H⁻¹ is inverted and factorised in doubles, every
/// error goes into all columns behind at once.
SweptWeight reference(const at::Tensor& weight, const at::Tensor& gram, double sparsity,
                      const SparsityPattern& pattern, int64_t block_size) {
  const int64_t out = weight.size(0), in = weight.size(1);
  at::Tensor h = gram.to(at::kDouble).clone();
  h.diagonal().add_(h.diagonal().mean() * kDamping);
  const at::Tensor inverse = h.inverse();
  std::vector<std::vector<double>> u(in, std::vector<double>(in)), w(out, std::vector<double>(in));
  for (int64_t i = 0; i < in; ++i) {  // inverse = Uᵀ U: Cholesky by rows of U
    for (int64_t j = i; j < in; ++j) {
      double sum = inverse[i][j].item<double>();
      for (int64_t k = 0; k < i; ++k) sum -= u[k][i] * u[k][j];
      u[i][j] = i == j ? std::sqrt(sum) : sum / u[i][i];
    }
  }
  for (int64_t i = 0; i < out; ++i) {
    for (int64_t j = 0; j < in; ++j) w[i][j] = weight[i][j].item<double>();
  }
  std::vector<std::vector<bool>> keep(out, std::vector<bool>(in, true));
  if (!pattern.is_unstructured()) block_size -= block_size % pattern.group_size;
  for (int64_t first = 0; first < in; first += block_size) {
    const int64_t last = std::min(first + block_size, in);
    if (pattern.is_unstructured()) {
      choose(w, u, first, last, num_pruned(sparsity, out * (last - first)), false, keep);
    }
    for (int64_t j = first; j < last; ++j) {
      if (!pattern.is_unstructured() && j % pattern.group_size == 0) {
        choose(w, u, j, j + pattern.group_size, pattern.group_size - pattern.num_kept, true, keep);
      }
      for (int64_t i = 0; i < out; ++i) {
        if (keep[i][j]) continue;
        const double error = w[i][j] / u[j][j];
        w[i][j] = 0;
        for (int64_t k = j + 1; k < in; ++k) w[i][k] -= error * u[j][k];
      }
    }
  }
  SweptWeight result{at::zeros({out, in}, at::TensorOptions(at::kBool)), doubles({out, in})};
  for (int64_t i = 0; i < out; ++i) {
    for (int64_t j = 0; j < in; ++j) {
      result.mask[i][j] = bool(keep[i][j]);
      result.weight[i][j] = w[i][j];
    }
  }
  return result;
}

struct Case {
  double sparsity;
  SparsityPattern pattern;
  int64_t in, block_size;
};

class SparseGpt : public ::testing::TestWithParam<Case> {};

TEST_P(SparseGpt, EqualsThePlainLoop) {
  const auto& [sparsity, pattern, in, block_size] = GetParam();
  const at::Tensor gram = gram_of(in, 1);
  const at::Tensor weight = at::randn({9, in});
  const SweptWeight swept = sweep_columns(weight, nothing_dead(in), *inverse_factor(gram, kDamping),
                                          sparsity, pattern, block_size);
  const SweptWeight expected = reference(weight, gram, sparsity, pattern, block_size);
  EXPECT_TRUE(swept.mask.equal(expected.mask));
  EXPECT_THAT(swept.weight, IsCloseTo(expected.weight.to(at::kFloat)));
  EXPECT_TRUE(swept.weight.masked_select(swept.mask.logical_not()).eq(0).all().item<bool>());
}

INSTANTIATE_TEST_SUITE_P(Patterns, SparseGpt,
                         ::testing::Values(Case{0.5, {}, 40, 16}, Case{0.7, {}, 37, 16},
                                           Case{0.5, {}, 37, 128}, Case{0.5, {2, 4}, 40, 16},
                                           Case{0.5, {2, 4}, 40, 18}, Case{0.6, {2, 5}, 40, 128}));

TEST(SparseGpt, FactorIsUpperAndOfTheInverse) {
  const at::Tensor gram = gram_of(23, 2);
  const at::Tensor factor = *inverse_factor(gram, kDamping);
  EXPECT_EQ(factor.tril(-1).count_nonzero().item<int64_t>(), 0);
  at::Tensor h = gram.to(at::kDouble).clone();
  h.diagonal().add_(h.diagonal().mean() * kDamping);
  const at::Tensor u = factor.to(at::kDouble);
  EXPECT_THAT(u.t().mm(u), IsCloseTo(h.inverse().to(at::kFloat)));
}

// Its point: what is left computes more nearly the same than the weights that were there.
TEST(SparseGpt, ErrorIsSmallerThanOfTheMaskAlone) {
  const at::Tensor gram = gram_of(64, 3);
  const at::Tensor weight = at::randn({20, 64});
  const SweptWeight swept =
      sweep_columns(weight, nothing_dead(64), *inverse_factor(gram, kDamping), 0.5, {}, 16);
  const auto error = [&](const at::Tensor& kept) {
    const at::Tensor change = weight - kept;
    return (change.mm(gram) * change).sum().item<double>();
  };
  EXPECT_LT(error(swept.weight), 0.7 * error(weight * swept.mask));
}

TEST(SparseGpt, DeadColumnsGoFirst) {
  at::Tensor gram = gram_of(32, 4);
  gram[5].fill_(0);
  gram.select(1, 5).fill_(0);
  const at::Tensor weight = at::randn({6, 32});
  const SweptWeight swept =
      sweep_columns(weight, gram.diagonal().eq(0), *inverse_factor(gram, kDamping), 0.25, {}, 16);
  EXPECT_EQ(swept.mask.select(1, 5).count_nonzero().item<int64_t>(), 0);
  EXPECT_TRUE(swept.weight.isfinite().all().item<bool>());
}

TEST(SparseGpt, EveryLazyBlockHasItsExactShare) {
  const at::Tensor gram = gram_of(40, 5);
  const SweptWeight swept = sweep_columns(at::randn({7, 40}), nothing_dead(40),
                                          *inverse_factor(gram, kDamping), 0.3, {}, 16);
  for (const auto& [first, width] : {std::pair<int64_t, int64_t>{0, 16}, {16, 16}, {32, 8}}) {
    const at::Tensor part = swept.mask.narrow(1, first, width);
    EXPECT_EQ(part.numel() - part.count_nonzero().item<int64_t>(), num_pruned(0.3, 7 * width));
  }
}

TEST(SparseGpt, WhatIsNotPositiveDefiniteHasNoFactor) {
  at::Tensor gram = gram_of(8, 6);
  EXPECT_FALSE(inverse_factor(gram.neg(), kDamping).has_value());
  gram[2][2] = NAN;
  EXPECT_FALSE(inverse_factor(gram, kDamping).has_value());
}

TEST(SparseGpt, LeavesItsInputsAlone) {
  const at::Tensor gram = gram_of(16, 7), weight = at::randn({4, 16});
  const at::Tensor gram_before = gram.clone(), before = weight.clone();
  const at::Tensor factor = *inverse_factor(gram, kDamping);
  sweep_columns(weight, nothing_dead(16), factor, 0.5, {});
  EXPECT_TRUE(gram.equal(gram_before));
  EXPECT_TRUE(weight.equal(before));
}

}  // namespace
}  // namespace coppice
