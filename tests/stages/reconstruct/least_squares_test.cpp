// All rows at once by conjugate gradients against one small linear system a row.
#include "stages/reconstruct/least_squares.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_solve.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

struct Problem {
  at::Tensor dense, mask, gram;

  explicit Problem(int64_t out = 6, int64_t in = 24, int seed = 1) {
    at::manual_seed(static_cast<uint64_t>(seed));
    const at::Tensor mix = at::randn({in, in}).add_(at::eye(in), 6);
    const at::Tensor x = at::randn({8 * in, in}).mm(mix);
    gram = x.t().mm(x);
    dense = at::randn({out, in});
    mask = at::rand({out, in}).gt(0.5);
  }

  at::Tensor solve(double ridge) const { return least_squares(dense, mask, gram, ridge); }

  /// ‖X (w − v)‖² + λ ‖(w − v)_S‖², summed over rows.
  double objective(const at::Tensor& w, double ridge) const {
    const at::Tensor change = (w - dense).to(at::kDouble);
    const double lambda = ridge * gram.diagonal().mean().item<double>();
    return ((change.mm(gram.to(at::kDouble)) * change).sum() +
            (change * mask).square().sum() * lambda)
        .item<double>();
  }
};

/// G_SS w = G_S: v + λ …, in doubles, row by row.
at::Tensor reference(const Problem& problem, double ridge) {
  const at::Tensor gram = problem.gram.to(at::kDouble);
  const double lambda = ridge * gram.diagonal().mean().item<double>();
  at::Tensor result = at::zeros(problem.dense.sizes(), at::TensorOptions(at::kDouble));
  for (int64_t row = 0; row < problem.dense.size(0); ++row) {
    const at::Tensor support = problem.mask[row].nonzero().squeeze(1);
    const at::Tensor v = problem.dense[row].to(at::kDouble);
    const at::Tensor rows = gram.index_select(0, support);
    const at::Tensor system = rows.index_select(1, support) +
                              at::eye(support.size(0), at::TensorOptions(at::kDouble)) * lambda;
    const at::Tensor right = rows.mv(v) + v.index_select(0, support) * lambda;
    result[row].index_copy_(0, support, at::linalg_solve(system, right));
  }
  return result;
}

TEST(LeastSquares, EqualsTheSystemOfEveryRow) {
  for (const double ridge : {0.01, 0.1, 1.0}) {
    const Problem problem;
    EXPECT_THAT(problem.solve(ridge), IsCloseTo(reference(problem, ridge).to(at::kFloat))) << ridge;
  }
}

TEST(LeastSquares, IsZeroOutsideOfTheSupport) {
  const Problem problem;
  EXPECT_EQ((problem.solve(0.01) * problem.mask.logical_not()).count_nonzero().item<int64_t>(), 0);
}

TEST(LeastSquares, IsBetterThanTheMaskAlone) {
  const Problem problem(40, 64, 2);
  const at::Tensor masked = problem.dense * problem.mask;
  EXPECT_LT(problem.objective(problem.solve(0.01), 0.01), 0.7 * problem.objective(masked, 0.01));
}

TEST(LeastSquares, HugeRidgeLeavesTheKeptWeightsAsTheyWere) {
  const Problem problem;
  EXPECT_THAT(problem.solve(1e9), IsCloseTo(problem.dense * problem.mask));
}

TEST(LeastSquares, NothingPrunedChangesNothing) {
  Problem problem;
  problem.mask.fill_(true);
  EXPECT_TRUE(problem.solve(0.01).equal(problem.dense));
}

TEST(LeastSquares, RowsWithoutSupportAndDeadColumnsStayFinite) {
  Problem problem;
  problem.mask[2].fill_(false);
  problem.gram[3].fill_(0);
  problem.gram.select(1, 3).fill_(0);
  const at::Tensor fitted = problem.solve(0.01);
  EXPECT_TRUE(fitted.isfinite().all().item<bool>());
  EXPECT_EQ(fitted[2].count_nonzero().item<int64_t>(), 0);
}

TEST(LeastSquares, InputsThatAreAllZeroLeaveTheKeptWeights) {
  Problem problem;
  problem.gram.fill_(0);
  EXPECT_TRUE(problem.solve(0.01).equal(problem.dense * problem.mask));
}

TEST(LeastSquares, ARowDoesNotDependOnTheOthers) {
  const Problem problem(2100, 16, 3);  // more than are solved at once
  const at::Tensor all = problem.solve(0.01);
  for (const int64_t row : {0, 2047, 2048, 2099}) {
    const at::Tensor alone = least_squares(problem.dense.narrow(0, row, 1),
                                           problem.mask.narrow(0, row, 1), problem.gram, 0.01);
    EXPECT_THAT(alone, IsCloseTo(all.narrow(0, row, 1))) << row;
  }
}

}  // namespace
}  // namespace coppice
