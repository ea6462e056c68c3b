#include "stages/span_job.h"

#include <ATen/ops/tensor.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

TEST(SpanJob, HalvesAlternateAttentionAndMlp) {
  EXPECT_EQ(half_of(6), Half::kAttention);
  EXPECT_EQ(half_of(7), Half::kMlp);
  EXPECT_EQ((HalfRange{7, 8}.first_block()), 3);
}

TEST(SpanJob, BoundaryIsWrittenAsItsFileIsCalled) {
  EXPECT_EQ(to_string(Boundary{Stream::kDense, 12}), "dense.12");
  EXPECT_EQ(to_string(Boundary{Stream::kPropagated, 0}), "propagated.0");
}

TEST(SpanJob, ColumnNormIsTheRootOfTheSum) {
  const InputStatistics statistics{at::tensor({9.0, 0.0, 2.25}, at::kDouble), 5};
  EXPECT_THAT(statistics.column_norm(), testing::IsIdenticalTo(at::tensor({3.0F, 0.0F, 1.5F})));
}

TEST(SpanJob, ColumnNormOfSumsBeyondFp32IsFiniteAndNotZero) {
  const InputStatistics statistics{at::tensor({1e60, 1e-60}, at::kDouble), 5};
  EXPECT_THAT(statistics.column_norm(), testing::IsIdenticalTo(at::tensor({1e30F, 1e-30F})));
}

}  // namespace
}  // namespace coppice
