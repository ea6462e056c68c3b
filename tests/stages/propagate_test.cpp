#include "stages/propagate.h"

#include <ATen/TensorOperators.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "stages/errors.h"
#include "tests/support/tiny_llama.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::IsEmpty;
using testing::IsIdenticalTo;
using testing::TinySpan;

constexpr int kWindows = 3;
const HalfRange kMlp{1, 2};

void run(TinySpan& span, HalfRange halves) {
  WindowJob job{span.job, halves, &span.variant()};
  Propagate().run(job);
}

TEST(Propagate, HandsOnWhatTheAdaptedWeightsMakeOfThePrunedPrefix) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  for (const at::Tensor& x : span.boundaries.held[1]) {
    span.boundaries.propagated[1].push_back(x.mul(0.5));
  }
  span.boundaries.wanted = {2};
  const at::Tensor bias = span.job.dense[0].linears.at("down").bias + 1;
  const at::Tensor gain = span.job.dense[0].norms.at("before_mlp").gain * 2;
  span.variant().adapted["model.layers.0.mlp.down_proj.bias"] = bias;
  span.variant().adapted["model.layers.0.post_attention_layernorm.weight"] = gain;
  run(span, kMlp);
  BlockWeights adapted = span.job.dense[0];
  adapted.linears.at("down").bias = bias;
  adapted.norms.at("before_mlp").gain = gain;
  for (auto& [role, linear] : adapted.linears) {
    const std::string name = in_block(span.architecture, 0, span.architecture.linear(role).name);
    linear.weight = span.variant().adapted.at(name + ".weight");
  }
  for (size_t i = 0; i < kWindows; ++i) {
    const MicroBatch x{span.boundaries.propagated[1][i], {TinySpan::kSeqlen}};
    EXPECT_THAT(span.boundaries.propagated.at(2).at(i),
                IsIdenticalTo(mlp_half(span.architecture, adapted, x)));
  }
}

TEST(Propagate, TheFirstWindowStartsFromTheEmbeddings) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.variant().adapted.clear();  // dense weights on dense activations
  span.boundaries.wanted = {1};
  run(span, {0, 1});
  for (size_t i = 0; i < kWindows; ++i) {
    EXPECT_THAT(span.boundaries.propagated.at(1).at(i), IsIdenticalTo(span.boundaries.held[1][i]));
  }
}

TEST(Propagate, SeveralBlocksUseTheirOwnWeights) {
  TinySpan span(kWindows, at::kFloat, at::kFloat, /*seed=*/1, /*num_blocks=*/2);
  span.variant().adapted.clear();
  span.boundaries.wanted = {4};
  run(span, {0, 4});
  for (size_t i = 0; i < kWindows; ++i) {
    EXPECT_THAT(span.boundaries.propagated.at(4).at(i), IsIdenticalTo(span.boundaries.held[4][i]));
  }
}

TEST(Propagate, ComputesNothingThatNobodyWillRead) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  run(span, kMlp);  // there is nothing to read, either
  EXPECT_THAT(span.boundaries.propagated, IsEmpty());
}

TEST(Propagate, DenseWeightsThatAreNotFiniteAreNamedThoughNobodyReads) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.job.dense[0].linears.at("up").weight[0][0] = NAN;
  EXPECT_THAT(
      [&] {
        run(span, {0, 1});
      },
      ::testing::ThrowsMessage<NumericalError>(::testing::HasSubstr("up_proj")));
}

TEST(Propagate, WhatFloat16CannotHoldIsAnError) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.architecture.dtype = "F16";
  span.job.dense[0].linears.at("o").bias.fill_(7e4);
  span.boundaries.wanted = {1};
  EXPECT_THAT(
      [&] {
        run(span, {0, 1});
      },
      ::testing::ThrowsMessage<NumericalError>(::testing::HasSubstr("in float16")));
}

TEST(Propagate, WhatIsNotFiniteIsAnErrorWithItsPlace) {
  TinySpan span(kWindows, at::kFloat, at::kFloat);
  span.variant().adapted.at("model.layers.0.self_attn.o_proj.weight").fill_(INFINITY);
  span.boundaries.wanted = {1};
  try {
    run(span, {0, 1});
    FAIL() << "no error";
  } catch (const NumericalError& error) {
    EXPECT_THAT(error.what(), ::testing::HasSubstr("propagated.1"));
  }
}

}  // namespace
}  // namespace coppice
