#include "stages/reconstruct/window_pass.h"

#include <ATen/TensorOperators.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "stages/model/half_cost.h"
#include "tests/support/tiny_llama.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

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

/// Bytes of tensors that this thread holds at once, at most.
class PeakOfTensors final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    held_ += bytes;
    peak_ = std::max(peak_, held_);
  }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t peak() const { return peak_; }

 private:
  int64_t held_ = 0, peak_ = 0;
};

constexpr int kTimes = 64;  // so that activations are what counts

int64_t peak_of(const TinySpan& span) {
  const WindowBlocks leaves = leaves_of(span);
  pass_through(span, leaves, kTimes);  // gradients are there
  const auto memory = std::make_shared<PeakOfTensors>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
  pass_through(span, leaves, kTimes);
  return memory->peak();
}

TEST(WindowPass, ActivationsTakeNoMoreMemoryThanThePlanCountsAndOfOneHalfMuchLess) {
  TinySpan span(2, at::kFloat, at::kFloat, /*seed=*/1, /*num_blocks=*/2);
  const auto all = double(peak_of(span));
  span.job.kept_activations = KeptActivations::kOfOneHalf;
  const auto of_one = double(peak_of(span));
  const double attention = double(kept_activations(span.architecture, Half::kAttention));
  const double mlp = double(kept_activations(span.architecture, Half::kMlp));
  // Reconstruct::cost: what is kept, and gradients of twice the widest half while they replace it.
  const double widest = std::max(attention, mlp), bytes = TinySpan::kSeqlen * kTimes * 4;
  EXPECT_LT(all, bytes * (2 * attention + 2 * mlp + widest));
  EXPECT_LT(of_one, bytes * (3 * double(span.architecture.hidden) + widest + widest));
  EXPECT_LT(of_one, 0.65 * all);
}

}  // namespace
}  // namespace coppice
