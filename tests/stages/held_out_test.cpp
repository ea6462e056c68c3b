#include "stages/held_out.h"

#include <ATen/ops/cat.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "stages/errors.h"
#include "stages/model/block_forward.h"
#include "stages/propagate.h"
#include "tests/support/tiny_llama.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsIdenticalTo;
using testing::TinySpan;

constexpr double kFraction = 0.4;  // two of five windows

void run(TinySpan& span, HalfRange halves) {
  WindowJob job{span.job, halves, &span.variant()};
  HeldOutForward(kFraction).run(job);
}

TEST(HeldOutForward, IsWhatTheAdaptedModelMakesOfTheLastWindows) {
  TinySpan span(5, at::kFloat, at::kFloat, /*seed=*/1, /*num_blocks=*/2);
  span.boundaries.wanted = {4};
  WindowJob all{span.job, {0, 4}, &span.variant()};
  Propagate().run(all);  // every window, another way
  run(span, {0, 4});
  const std::vector<at::Tensor>& expected = span.boundaries.propagated.at(4);
  EXPECT_THAT(span.variant().held_out.hidden, IsIdenticalTo(at::cat({expected[3], expected[4]})));
}

TEST(HeldOutForward, GoesOnFromWhereTheSpanBeforeEnded) {
  TinySpan whole(5, at::kFloat, at::kFloat, 1, 2), parts(5, at::kFloat, at::kFloat, 1, 2);
  run(whole, {0, 4});
  run(parts, {0, 2});
  run(parts, {2, 4});
  EXPECT_THAT(parts.variant().held_out.hidden, IsIdenticalTo(whole.variant().held_out.hidden));
}

TEST(HeldOutForward, WhatNobodyHandedOnIsOurError) {
  TinySpan span(5, at::kFloat, at::kFloat, 1, 2);
  EXPECT_THROW(run(span, {2, 4}), std::logic_error);
}

TEST(HeldOutForward, WhatIsNotFiniteIsAnErrorWithItsPlace) {
  TinySpan span(5, at::kFloat, at::kFloat);
  span.variant().adapted.at("model.layers.0.self_attn.o_proj.weight").fill_(INFINITY);
  EXPECT_THAT(
      [&] {
        run(span, {0, 2});
      },
      ::testing::ThrowsMessage<NumericalError>(::testing::HasSubstr("half-block 1")));
}

TEST(HeldOutForward, CostsTheShareOfTheWindowsThatAreHeldOut) {
  const TinySpan span(2, at::kFloat, at::kFloat);
  const SpanShape shape{span.architecture, {0, 2}, 10, TinySpan::kSeqlen, 4};
  const SpanShape few{span.architecture, {0, 2}, 4, TinySpan::kSeqlen, 4};
  const double all = HeldOutForward(kFraction).cost(shape).product_flop;
  EXPECT_EQ(all, Propagate().cost(few).product_flop);
}

}  // namespace
}  // namespace coppice
