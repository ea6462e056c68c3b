#include "stages/ops/column_sweep.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;
using testing::IsIdenticalTo;

struct Sweep {
  at::Tensor weight, errors, keep, factor;

  explicit Sweep(int64_t out = 13, int64_t columns = 37) {
    at::manual_seed(1);
    weight = at::randn({out, columns}, at::TensorOptions(at::kFloat));
    errors = at::zeros({out, columns}, at::TensorOptions(at::kFloat));
    keep = at::rand({out, columns}).gt(0.5);
    factor = at::randn({columns, columns}, at::TensorOptions(at::kFloat)).triu();
    factor.diagonal().abs_().add_(1);
  }
  Sweep run(int64_t first, int64_t last) const {
    Sweep copy = *this;
    copy.weight = weight.clone();
    copy.errors = errors.clone();
    sweep_columns_(copy.weight, copy.errors, copy.keep, copy.factor, first, last);
    return copy;
  }
};

TEST(ColumnSweep, EqualsTheLoop) {
  const Sweep sweep;
  at::Tensor w = sweep.weight.to(at::kDouble).clone();
  at::Tensor errors = at::zeros({13, 37}, at::TensorOptions(at::kDouble));
  for (int64_t i = 0; i < 13; ++i) {
    for (int64_t j = 5; j < 30; ++j) {
      if (sweep.keep[i][j].item<bool>()) continue;
      const double error = w[i][j].item<double>() / sweep.factor[j][j].item<double>();
      errors[i][j] = error;
      w[i][j] = 0;
      for (int64_t k = j + 1; k < 37; ++k) w[i][k].sub_(sweep.factor[j][k], error);
    }
  }
  const Sweep swept = sweep.run(5, 30);
  EXPECT_THAT(swept.weight, IsCloseTo(w.to(at::kFloat)));
  EXPECT_THAT(swept.errors, IsCloseTo(errors.to(at::kFloat)));
}

TEST(ColumnSweep, InTwoPartsIsInOne) {
  const Sweep sweep, whole = sweep.run(0, 37), parts = sweep.run(0, 16).run(16, 37);
  EXPECT_THAT(parts.weight, IsIdenticalTo(whole.weight));
  EXPECT_THAT(parts.errors, IsIdenticalTo(whole.errors));
}

TEST(ColumnSweep, NumberOfThreadsChangesNoBit) {
  const Sweep sweep(200, 64);
  const int before = at::get_num_threads();
  at::set_num_threads(1);
  const Sweep alone = sweep.run(0, 64);
  at::set_num_threads(3);
  const Sweep together = sweep.run(0, 64);
  at::set_num_threads(before);
  EXPECT_THAT(together.weight, IsIdenticalTo(alone.weight));
}

TEST(ColumnSweep, StridedFactorsAreReadByIndex) {
  Sweep sweep(5, 16);
  const at::Tensor wide = at::zeros({16, 40}, at::TensorOptions(at::kFloat));
  wide.narrow(1, 8, 16).copy_(sweep.factor);
  const Sweep expected = sweep.run(0, 16);
  sweep.factor = wide.narrow(1, 8, 16);
  EXPECT_THAT(sweep.run(0, 16).weight, IsIdenticalTo(expected.weight));
}

}  // namespace
}  // namespace coppice
