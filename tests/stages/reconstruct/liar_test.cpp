// The closed form against systems solved in doubles, and its limits.
#include "stages/reconstruct/liar.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_solve.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>

#include <cmath>
#include <limits>

#include "stages/errors.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::HasSubstr;
using testing::IsCloseTo;
using testing::IsIdenticalTo;
using ::testing::ThrowsMessage;

enum class Bias { kNo, kYes };

struct Problem {
  at::Tensor x;  // [tokens, in] fp64
  Linear linear;
  at::Tensor kept;
  InputMoments moments;

  explicit Problem(Bias bias, int64_t out = 5, int64_t in = 24, int64_t num_kept = 15) {
    at::manual_seed(2);
    const at::Tensor mix = at::randn({in, in}).add_(at::eye(in), 2);
    x = at::randn({10 * in, in}).mm(mix).add_(at::randn({in}).mul(3)).to(at::kDouble);
    linear.weight = at::randn({out, in});
    if (bias == Bias::kYes) linear.bias = at::randn({out});
    kept = at::rand({in}).argsort().lt(num_kept);
    moments = moments_of(x);
  }

  static InputMoments moments_of(const at::Tensor& x) {
    return {x.t().mm(x).to(at::kFloat), x.sum({0}), x.size(0)};
  }
  FoldedLinear fold(double ridge) const { return fold_removed(linear, kept, moments, ridge); }

  /// Output of the dense linear less that of the folded one, [tokens, out] fp64.
  at::Tensor residual(const FoldedLinear& folded, const at::Tensor& inputs) const {
    const at::Tensor change = (linear.weight - folded.weight).to(at::kDouble);
    at::Tensor residual = inputs.mm(change.t());
    if (folded.bias.defined()) residual += (linear.bias - folded.bias).to(at::kDouble);
    return residual;
  }
  double error(const FoldedLinear& folded, const at::Tensor& inputs) const {
    return residual(folded, inputs).square().sum().item<double>();
  }
};

/// (Xᵀ X + λ diag(1, …, 1, 0)) [change; intercept] = Xᵀ y over kept inputs and, with a bias, a
/// column of ones that nothing pulls on; y is what the removed inputs made.
FoldedLinear reference(const Problem& problem, double ridge) {
  const at::Tensor keep = problem.kept.nonzero().squeeze(1);
  const at::Tensor remove = problem.kept.logical_not().nonzero().squeeze(1);
  at::Tensor inputs = problem.x.index_select(1, keep);
  const bool has_bias = problem.linear.bias.defined();
  const at::Tensor centred = has_bias ? inputs - inputs.mean({0}, /*keepdim=*/true) : inputs;
  const double lambda = ridge * centred.square().sum({0}).mean().item<double>();
  const int64_t num_kept = keep.size(0);
  at::Tensor pull = at::full({num_kept + (has_bias ? 1 : 0)}, lambda, at::kDouble);
  if (has_bias) {
    inputs = at::cat({inputs, at::ones({inputs.size(0), 1}, at::kDouble)}, 1);
    pull[num_kept] = 0;
  }
  const at::Tensor weight = problem.linear.weight.to(at::kDouble);
  const at::Tensor missing =
      problem.x.index_select(1, remove).mm(weight.index_select(1, remove).t());
  const at::Tensor solution =
      at::linalg_solve(inputs.t().mm(inputs) + pull.diag(), inputs.t().mm(missing));
  FoldedLinear folded;
  folded.weight = at::zeros(weight.sizes(), at::kDouble);
  folded.weight.index_copy_(1, keep,
                            weight.index_select(1, keep) + solution.narrow(0, 0, num_kept).t());
  if (has_bias) folded.bias = problem.linear.bias.to(at::kDouble) + solution[num_kept];
  return folded;
}

class FoldRemoved : public ::testing::TestWithParam<Bias> {
 protected:
  Problem problem_{GetParam()};
};

TEST_P(FoldRemoved, EqualsALeastSquaresSolverInDoubles) {
  for (const double ridge : {1e-4, 1e-2, 1.0, 100.0}) {
    const FoldedLinear folded = problem_.fold(ridge), expected = reference(problem_, ridge);
    EXPECT_THAT(folded.weight, IsCloseTo(expected.weight.to(at::kFloat))) << ridge;
    ASSERT_EQ(folded.bias.defined(), GetParam() == Bias::kYes);
    if (folded.bias.defined()) {
      EXPECT_THAT(folded.bias, IsCloseTo(expected.bias.to(at::kFloat))) << ridge;
    }
  }
}

TEST_P(FoldRemoved, ReadsKeptInputsOnly) {
  const at::Tensor removed = problem_.kept.logical_not();
  const at::Tensor columns = problem_.fold(0.01).weight.index_select(1, removed.nonzero().view(-1));
  EXPECT_EQ(columns.count_nonzero().item<int64_t>(), 0);
}

TEST_P(FoldRemoved, WithoutARidgeTheResidualIsOrthogonalToTheKeptInputs) {
  const at::Tensor residual = problem_.residual(problem_.fold(1e-12), problem_.x);
  const at::Tensor inputs = problem_.x.index_select(1, problem_.kept.nonzero().view(-1));
  const at::Tensor product = inputs.t().mm(residual);  // [kept, out]
  const at::Tensor norms = inputs.square().sum({0}).sqrt().outer(residual.square().sum({0}).sqrt());
  EXPECT_LT((product / norms).abs().max().item<double>(), 1e-3);
}

TEST_P(FoldRemoved, AHugeRidgeTendsToAnInfiniteOne) {
  const FoldedLinear huge = problem_.fold(1e9), infinite = problem_.fold(INFINITY);
  EXPECT_THAT(huge.weight, IsCloseTo(infinite.weight));
  const at::Tensor kept = problem_.kept.to(at::kFloat);
  EXPECT_THAT(infinite.weight, IsIdenticalTo(problem_.linear.weight * kept + 0));
  if (GetParam() == Bias::kYes) {
    EXPECT_THAT(huge.bias, IsCloseTo(infinite.bias));
  }
}

TEST_P(FoldRemoved, IsNeverWorseThanBiasCompensationNorThatThanRemoval) {
  const FoldedLinear removal{problem_.linear.weight * problem_.kept.to(at::kFloat),
                             problem_.linear.bias};
  const double none = problem_.error(removal, problem_.x);
  double worse = problem_.error(problem_.fold(INFINITY), problem_.x);
  EXPECT_LE(worse, none * (1 + 1e-6));
  for (const double ridge : {10.0, 1.0, 0.1, 0.01, 0.001}) {
    const double better = problem_.error(problem_.fold(ridge), problem_.x);
    EXPECT_LT(better, worse) << ridge;
    worse = better;
  }
}

TEST_P(FoldRemoved, NothingRemovedChangesNothing) {
  problem_.kept = at::ones({24}, at::kBool);
  const FoldedLinear folded = problem_.fold(0.1);
  EXPECT_THAT(folded.weight, IsIdenticalTo(problem_.linear.weight));
  if (GetParam() == Bias::kYes) {
    EXPECT_THAT(folded.bias, IsIdenticalTo(problem_.linear.bias));
  }
}

TEST_P(FoldRemoved, FewerTokensThanInputsAreFitted) {
  const at::Tensor few = problem_.x.narrow(0, 0, 6);
  problem_.moments = Problem::moments_of(few);
  const FoldedLinear folded = problem_.fold(1e-3);
  EXPECT_TRUE(folded.weight.isfinite().all().item<bool>());
  EXPECT_LT(problem_.error(folded, few), problem_.error(problem_.fold(INFINITY), few));
}

TEST_P(FoldRemoved, InputsThatNeverDifferFromZeroAreLeftAlone) {
  problem_.x.zero_();
  problem_.moments = Problem::moments_of(problem_.x);
  const at::Tensor kept = problem_.kept.to(at::kFloat);
  EXPECT_THAT(problem_.fold(0.01).weight, IsIdenticalTo(problem_.linear.weight * kept + 0));
}

TEST_P(FoldRemoved, StatisticsThatAreNotFiniteAreRefused) {
  problem_.moments.gram.fill_(std::numeric_limits<float>::quiet_NaN());
  EXPECT_THAT([&] { problem_.fold(0.01); },
              ThrowsMessage<NumericalError>(HasSubstr("Gram matrix of the kept inputs")));
}

INSTANTIATE_TEST_SUITE_P(Bias, FoldRemoved, ::testing::Values(Bias::kNo, Bias::kYes));

}  // namespace
}  // namespace coppice
