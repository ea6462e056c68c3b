#include "stages/reconstruct/window_pass.h"

#include <ATen/TensorOperators.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "stages/model/half_cost.h"
#include "tests/support/held_tensors.h"
#include "tests/support/tiny_llama.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::HeldTensors;
using testing::IsIdenticalTo;
using testing::TinySpan;

constexpr HalfRange kTwoBlocks{0, 4};

/// Every weight of the span's blocks as a leaf of its own.
WindowBlocks leaves_of(const TinySpan& span) {
  WindowBlocks blocks;
  for (int block = 0; block < 2; ++block) {
    BlockWeights weights = span.job.dense[size_t(block)];
    for (auto& [role, linear] : weights.linears) {
      linear.weight = linear.weight.to(span.job.compute).clone().requires_grad_();
      if (linear.bias.defined()) {
        linear.bias = linear.bias.to(span.job.compute).clone().requires_grad_();
      }
    }
    for (auto& [role, norm] : weights.norms) norm.gain = norm.gain.clone().requires_grad_();
    blocks[block] = std::move(weights);
  }
  return blocks;
}

/// One window so many times.
MicroBatch input_of(const TinySpan& span, int times) {
  return {span.boundaries.held.at(0)[0].to(span.job.compute).repeat({times, 1}),
          std::vector<int>(size_t(times), TinySpan::kSeqlen)};
}

/// Forward and back with a gradient like any other.
at::Tensor pass_through(const TinySpan& span, const WindowBlocks& leaves, int times = 1) {
  WindowPass pass(span.job, kTwoBlocks, leaves);
  const at::Tensor output = pass.forward(input_of(span, times));
  const at::Tensor copy = output.clone();
  output.mul_(0.25);  // the caller's to overwrite
  pass.backward(output);
  return copy;
}

class WindowPassOf : public ::testing::TestWithParam<at::ScalarType> {};

TEST_P(WindowPassOf, ActivationsThatAreComputedAgainGiveTheSameBits) {
  TinySpan span(2, at::kFloat, GetParam(), /*seed=*/1, /*num_blocks=*/2);
  const WindowBlocks kept = leaves_of(span), again = leaves_of(span);
  const at::Tensor of_kept = pass_through(span, kept);
  span.job.kept_activations = KeptActivations::kOfOneHalf;
  EXPECT_THAT(pass_through(span, again), IsIdenticalTo(of_kept));
  for (const auto& [block, weights] : kept) {
    for (const auto& [role, linear] : weights.linears) {
      ASSERT_TRUE(linear.weight.grad().defined()) << role;
      EXPECT_THAT(again.at(block).linears.at(role).weight.grad(),
                  IsIdenticalTo(linear.weight.grad()))
          << block << " " << role;
    }
    for (const auto& [role, norm] : weights.norms) {
      EXPECT_THAT(again.at(block).norms.at(role).gain.grad(), IsIdenticalTo(norm.gain.grad()))
          << block << " " << role;
    }
  }
}
INSTANTIATE_TEST_SUITE_P(Dtypes, WindowPassOf, ::testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& dtype) { return c10::toString(dtype.param); });

TEST(WindowPass, GradientsOfTwoBatchesAddUp) {
  TinySpan span(2, at::kFloat, at::kFloat, /*seed=*/1, /*num_blocks=*/2);
  span.job.kept_activations = KeptActivations::kOfOneHalf;
  const WindowBlocks once = leaves_of(span), twice = leaves_of(span);
  pass_through(span, once);
  pass_through(span, twice);
  pass_through(span, twice);
  const at::Tensor gradient = once.at(0).linears.at("q").weight.grad();
  EXPECT_THAT(twice.at(0).linears.at("q").weight.grad(), IsIdenticalTo(gradient + gradient));
}

constexpr int kTimes = 64;  // so that activations are what counts

int64_t peak_of(const TinySpan& span) {
  const WindowBlocks leaves = leaves_of(span);
  pass_through(span, leaves, kTimes);  // gradients are there
  const HeldTensors held;
  pass_through(span, leaves, kTimes);
  return held.peak();
}

TEST(WindowPass, ActivationsTakeNoMoreMemoryThanThePlanCountsAndOfOneHalfMuchLess) {
  TinySpan span(2, at::kFloat, at::kFloat, /*seed=*/1, /*num_blocks=*/2);
  const auto all = double(peak_of(span));
  span.job.kept_activations = KeptActivations::kOfOneHalf;
  const auto of_one = double(peak_of(span));
  const BatchShape batch{kTimes, TinySpan::kSeqlen};
  const double attention = kept_bytes(span.architecture, Half::kAttention, batch);
  const double mlp = kept_bytes(span.architecture, Half::kMlp, batch);
  const double inputs = 4.0 * kTimes * TinySpan::kSeqlen * double(span.architecture.hidden) * 4;
  const double passing = std::max(passing_bytes(span.architecture, Half::kAttention, batch),
                                  passing_bytes(span.architecture, Half::kMlp, batch));
  EXPECT_LT(all, inputs / 4 + 2 * attention + 2 * mlp + passing);
  EXPECT_LT(of_one, inputs + std::max(attention, mlp) + passing);
  EXPECT_LT(of_one, 0.65 * all);
}

}  // namespace
}  // namespace coppice
