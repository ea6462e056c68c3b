// The kernel's own source, run on the host, against the CPU's step; and a GPU, where there is one,
// against both.
#include "stages/ops/masked_adamw_kernel.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/host_team.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::HostTeam;
using testing::IsIdenticalTo;
using testing::Launch;
using testing::run_kernel;
using testing::ThreadOrder;

constexpr Launch kLaunch{3, 32, ThreadOrder::kDescending};
constexpr AdamWStep kStep{1e-2, 7};

/// A step somewhere in the middle of a training: moments of gradients like the one that comes.
AdamWState some_state(at::IntArrayRef shape) {
  const at::Tensor moment = at::randn(shape, at::kFloat).mul_(1e-3);
  return {at::randn(shape, at::kFloat), moment, moment.square().mul_(0.1), {}, {}};
}

AdamWState masked_state(at::IntArrayRef shape) {
  AdamWState state = some_state(shape);
  state.mask = at::rand(shape, at::kFloat).gt(0.5);
  state.compute = at::zeros(shape, at::kBFloat16);
  return state;
}

AdamWState copy_of(const AdamWState& state, at::Device device = at::kCPU) {
  const auto copied = [&](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.clone().to(device) : tensor;
  };
  return {copied(state.master), copied(state.first_moment), copied(state.second_moment),
          copied(state.mask), copied(state.compute)};
}

AdamWState by_kernel(const AdamWState& before, const at::Tensor& gradient,
                     const Launch& launch = kLaunch) {
  AdamWState state = copy_of(before);
  detail::AdamWPointers pointers;
  pointers.n = state.master.numel();
  pointers.master = state.master.mutable_data_ptr<float>();
  pointers.first_moment = state.first_moment.mutable_data_ptr<float>();
  pointers.second_moment = state.second_moment.mutable_data_ptr<float>();
  if (state.mask.defined()) pointers.mask = state.mask.const_data_ptr<bool>();
  if (state.compute.defined()) pointers.compute = state.compute.mutable_data_ptr<at::BFloat16>();
  if (gradient.scalar_type() == at::kBFloat16) {
    pointers.gradient_bf16 = gradient.const_data_ptr<at::BFloat16>();
  } else {
    pointers.gradient_fp32 = gradient.const_data_ptr<float>();
  }
  const detail::AdamWCoefficients c = detail::coefficients_of(kStep);
  struct Nothing {};
  run_kernel<Nothing>(launch,
                      [&](const HostTeam& team, Nothing&) { gpu::adamw_step(team, pointers, c); });
  return state;
}

AdamWState by_op(const AdamWState& before, const at::Tensor& gradient, at::Device device) {
  AdamWState state = copy_of(before, device);
  masked_adamw(state, gradient.to(device), kStep);
  return copy_of({state.master.cpu(), state.first_moment.cpu(), state.second_moment.cpu(),
                  state.mask, state.compute.defined() ? state.compute.cpu() : state.compute});
}

/// Whether two results of a formula of few roundings may be of the same inputs: apart by so many
/// spacings of fp32 at `scale`, the size of the largest of its terms.
constexpr double kSpacings = 4;
MATCHER_P2(IsWithinRoundingsOf, expected, scale, "differs by few roundings") {
  const at::Tensor difference = arg.to(at::kDouble).sub(expected).abs();
  const at::Tensor allowed = scale.to(at::kDouble).mul(kSpacings * std::ldexp(1.0, -23));
  *result_listener << "furthest off: " << difference.div(allowed).max().template item<double>()
                   << " of what is allowed";
  return difference.le(allowed).all().template item<bool>();
}

TEST(MaskedAdamWKernel, StepIsTheCpusWithinItsRoundings) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const AdamWState before = masked_state({37, 131});
    const at::Tensor gradient = at::randn({37, 131}, at::kFloat).mul_(1e-3).to(dtype);
    const AdamWState kernel = by_kernel(before, gradient), cpu = by_op(before, gradient, at::kCPU);
    const at::Tensor size = gradient.to(at::kFloat).abs() + before.first_moment.abs();
    EXPECT_THAT(kernel.first_moment, IsWithinRoundingsOf(cpu.first_moment, size));
    EXPECT_THAT(kernel.second_moment, IsWithinRoundingsOf(cpu.second_moment, cpu.second_moment));
    // The step is of the size of its rate, unless it divides by almost nothing.
    const at::Tensor root = before.second_moment.add(gradient.to(at::kFloat).square(), 1e-3).sqrt();
    EXPECT_THAT(kernel.master,
                IsWithinRoundingsOf(cpu.master, before.master.abs() + size.div(root).mul(1e-2)));
  }
}

TEST(MaskedAdamWKernel, ScheduleChangesNoBit) {
  const AdamWState before = masked_state({5, 77});
  const at::Tensor gradient = at::randn({5, 77}, at::kFloat);
  const AdamWState expected = by_kernel(before, gradient, {1, 1, ThreadOrder::kAscending});
  const AdamWState found = by_kernel(before, gradient, {2, 300, ThreadOrder::kDescending});
  EXPECT_THAT(found.master, IsIdenticalTo(expected.master));
  EXPECT_THAT(found.compute, IsIdenticalTo(expected.compute));
}

TEST(MaskedAdamWKernel, PrunedElementsArePlusZeroWhateverTheyWere) {
  for (const float was : {-1.0f, -0.0f, std::numeric_limits<float>::quiet_NaN()}) {
    AdamWState before = masked_state({9, 33});
    const at::Tensor pruned = before.mask.logical_not();
    before.master.masked_fill_(pruned, was);
    before.first_moment.masked_fill_(pruned, was);
    const at::Tensor gradient = at::randn({9, 33}, at::kFloat).masked_fill_(pruned, was);
    const AdamWState after = by_kernel(before, gradient);
    for (const at::Tensor& tensor :
         {after.master, after.first_moment, after.second_moment, after.compute}) {
      const at::Tensor cleared = tensor.masked_select(pruned);
      EXPECT_THAT(cleared, IsIdenticalTo(at::zeros_like(cleared))) << was;
    }
    EXPECT_TRUE(after.master.isfinite().all().item<bool>()) << was;
  }
}

TEST(MaskedAdamWKernel, ComputeCopyIsTheMasterRoundedAsTensorsRound) {
  const AdamWState after = by_kernel(masked_state({11, 50}), at::randn({11, 50}, at::kFloat));
  EXPECT_THAT(after.compute, IsIdenticalTo(after.master.to(at::kBFloat16)));
  EXPECT_GT(after.compute.count_nonzero().item<int64_t>(), 0);
}

TEST(MaskedAdamWKernel, WithoutMaskAndCopyEveryElementIsStepped) {
  const AdamWState before = some_state({3, 40});
  const at::Tensor gradient = at::randn({3, 40}, at::kFloat);
  AdamWState masked = copy_of(before);
  masked.mask = at::zeros({3, 40}, at::kBool).logical_not();
  EXPECT_THAT(by_kernel(before, gradient).master,
              IsIdenticalTo(by_kernel(masked, gradient).master));
  EXPECT_FALSE(before.master.equal(by_kernel(before, gradient).master));
}

TEST(MaskedAdamWKernel, GpuHasTheBitsOfTheHost) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const AdamWState before = masked_state({37, 131});
    const at::Tensor gradient = at::randn({37, 131}, at::kFloat).mul_(1e-3).to(dtype);
    const AdamWState host = by_kernel(before, gradient);
    const AdamWState device = by_op(before, gradient, at::kCUDA);
    EXPECT_THAT(device.master, IsIdenticalTo(host.master));
    EXPECT_THAT(device.first_moment, IsIdenticalTo(host.first_moment));
    EXPECT_THAT(device.second_moment, IsIdenticalTo(host.second_moment));
    EXPECT_THAT(device.compute, IsIdenticalTo(host.compute));
  }
}

}  // namespace
}  // namespace coppice
