// The fused step against AdamW written out in doubles.
#include "stages/ops/masked_adamw.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/ops/bernoulli.h>
#include <ATen/ops/full.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

namespace coppice {
namespace {

using ::testing::HasSubstr;

constexpr int64_t kRows = 37, kColumns = 1031;  // more than a stretch, no multiple of a vector
constexpr double kFp32Relative = 2e-5;          // of the distance travelled in 50 steps

/// torch.optim.AdamW(weight_decay=0) in doubles; pruned elements stay 0.
struct Reference {
  std::vector<double> w, m, v;
  void step(const float* gradient, const bool* mask, const AdamWStep& s) {
    for (size_t i = 0; i < w.size(); ++i) {
      m[i] = s.beta1 * m[i] + (1 - s.beta1) * gradient[i];
      v[i] = s.beta2 * v[i] + (1 - s.beta2) * gradient[i] * gradient[i];
      const double m_hat = m[i] / (1 - std::pow(s.beta1, s.step));
      const double v_hat = v[i] / (1 - std::pow(s.beta2, s.step));
      w[i] -= s.lr * m_hat / (std::sqrt(v_hat) + s.epsilon);
      if (mask != nullptr && !mask[i]) w[i] = m[i] = v[i] = 0;
    }
  }
};

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor left = a.cpu().contiguous(), right = b.cpu().contiguous();
  return left.nbytes() == right.nbytes() &&
         std::memcmp(left.const_data_ptr(), right.const_data_ptr(), left.nbytes()) == 0;
}

at::Tensor random_mask() {
  return at::bernoulli(at::full({kRows, kColumns}, 0.5, at::kFloat)).to(at::kBool);
}

class MaskedAdamW : public ::testing::TestWithParam<at::DeviceType> {
 protected:
  void SetUp() override {
    if (GetParam() == at::kCUDA && !at::hasCUDA()) GTEST_SKIP() << "no CUDA device";
    at::manual_seed(0);
  }
  at::Tensor on_device(const at::Tensor& tensor) const { return tensor.to(GetParam()); }
  at::Tensor normal(at::ScalarType dtype = at::kFloat) const {
    return on_device(at::randn({kRows, kColumns}, at::kFloat).to(dtype));
  }
  at::Tensor zeros(at::ScalarType dtype = at::kFloat) const {
    return on_device(at::zeros({kRows, kColumns}, dtype));
  }
  AdamWState masked_state() const {
    return {normal(), zeros(), zeros(), on_device(random_mask()), zeros(at::kBFloat16)};
  }
  void expect_equals_reference(at::ScalarType gradient_dtype, const at::Tensor& mask) const;
};

INSTANTIATE_TEST_SUITE_P(Devices, MaskedAdamW, ::testing::Values(at::kCPU, at::kCUDA),
                         [](const auto& param_info) {
                           return param_info.param == at::kCPU ? "Cpu" : "Cuda";
                         });

void MaskedAdamW::expect_equals_reference(at::ScalarType gradient_dtype,
                                          const at::Tensor& mask) const {
  const at::Tensor start = at::randn({kRows, kColumns}, at::kFloat);
  const int64_t n = start.numel();
  const float* w = start.const_data_ptr<float>();
  Reference reference{{w, w + n}, std::vector<double>(n), std::vector<double>(n)};
  AdamWState state{on_device(start.clone()), zeros(), zeros(),
                   mask.defined() ? on_device(mask) : at::Tensor(), at::Tensor()};
  AdamWStep step;
  for (step.step = 1; step.step <= 50; ++step.step) {
    step.lr = 1e-2 / static_cast<double>(step.step);
    const at::Tensor gradient =
        at::randn({kRows, kColumns}, at::kFloat).mul_(1e-3).to(gradient_dtype);
    const at::Tensor exact = gradient.to(at::kFloat);
    masked_adamw(state, on_device(gradient), step);
    reference.step(exact.const_data_ptr<float>(),
                   mask.defined() ? mask.const_data_ptr<bool>() : nullptr, step);
  }
  const at::Tensor master = state.master.cpu(), first = state.first_moment.cpu(),
                   second = state.second_moment.cpu();
  double worst_w = 0, worst_m = 0, worst_v = 0;
  for (int64_t i = 0; i < n; ++i) {
    worst_w = std::max(worst_w, std::abs(master.const_data_ptr<float>()[i] - reference.w[i]));
    worst_m = std::max(worst_m, std::abs(first.const_data_ptr<float>()[i] - reference.m[i]));
    worst_v = std::max(worst_v, std::abs(second.const_data_ptr<float>()[i] - reference.v[i]));
  }
  // 50 roundings of values below 8 (spacing 2^-21), far less than the first step of 1e-2.
  EXPECT_LT(worst_w, 50 * std::ldexp(1.0, -22));
  EXPECT_LT(worst_m, kFp32Relative * 1e-3);
  EXPECT_LT(worst_v, kFp32Relative * 1e-6);
}

TEST_P(MaskedAdamW, FiftyStepsEqualDoubles) { expect_equals_reference(at::kFloat, {}); }

TEST_P(MaskedAdamW, FiftyMaskedStepsEqualDoubles) {
  expect_equals_reference(at::kFloat, random_mask());
}

TEST_P(MaskedAdamW, FiftyStepsOnBf16GradientsEqualDoubles) {
  expect_equals_reference(at::kBFloat16, random_mask());
}

TEST_P(MaskedAdamW, PrunedElementsArePlusZeroWhateverTheyWere) {
  for (const float was : {-1.0f, -0.0f, std::numeric_limits<float>::quiet_NaN()}) {
    AdamWState state = masked_state();
    const at::Tensor pruned = state.mask.logical_not();
    for (at::Tensor* tensor : {&state.master, &state.first_moment})
      tensor->masked_fill_(pruned, was);
    masked_adamw(state, normal().masked_fill(pruned, was), {1e-2, 1});
    for (const at::Tensor& tensor :
         {state.master, state.first_moment, state.second_moment, state.compute}) {
      const at::Tensor cleared = tensor.masked_select(pruned);
      EXPECT_TRUE(same_bits(cleared, at::zeros_like(cleared))) << was;
    }
    EXPECT_TRUE(state.master.isfinite().all().item<bool>()) << was;
  }
}

TEST_P(MaskedAdamW, KeptElementsDoNotSeeTheMask) {
  AdamWState masked = masked_state();
  AdamWState plain{masked.master.clone(), zeros(), zeros(), at::Tensor(), at::Tensor()};
  for (int64_t step = 1; step <= 3; ++step) {
    const at::Tensor gradient = normal();
    masked_adamw(masked, gradient, {1e-2, step});
    masked_adamw(plain, gradient, {1e-2, step});
  }
  EXPECT_TRUE(
      same_bits(masked.master.masked_select(masked.mask), plain.master.masked_select(masked.mask)));
}

TEST_P(MaskedAdamW, ComputeCopyIsTheMasterRoundedAsTensorsRound) {
  AdamWState state = masked_state();
  state.master.mul_(on_device(at::randn({kRows, kColumns}, at::kFloat).mul(20).exp()));
  state.master.narrow(0, 0, 1).fill_(1.00390625f);  // halfway between two bf16: ties to even
  masked_adamw(state, zeros(), {0.0, 1});
  EXPECT_TRUE(same_bits(state.compute, state.master.to(at::kBFloat16)));
  EXPECT_GT(state.compute.count_nonzero().item<int64_t>(), 0);
}

TEST_P(MaskedAdamW, NumberOfThreadsChangesNoBit) {
  const AdamWState start = masked_state();
  const at::Tensor gradient = normal(at::kBFloat16);
  const int num_threads = at::get_num_threads();
  const auto master_with = [&](int threads) {
    at::set_num_threads(threads);
    AdamWState state{start.master.clone(), zeros(), zeros(), start.mask, zeros(at::kBFloat16)};
    masked_adamw(state, gradient, {1e-2, 1});
    at::set_num_threads(num_threads);
    return state.master;
  };
  EXPECT_TRUE(same_bits(master_with(1), master_with(3)));
}

TEST_P(MaskedAdamW, WrongTensorsAreRefusedByName) {
  const auto message_of = [](AdamWState state, const at::Tensor& gradient) -> std::string {
    try {
      masked_adamw(state, gradient, {1e-2, 1});
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message_of(masked_state(), at::Tensor()), HasSubstr("gradient is undefined"));
  EXPECT_THAT(message_of(masked_state(), normal(at::kHalf)), HasSubstr("in Half"));
  EXPECT_THAT(message_of(masked_state(), normal().t()), HasSubstr("[1031, 37]"));
  EXPECT_THAT(message_of(masked_state(), normal().t().contiguous().t()), HasSubstr("strided"));
  AdamWState state = masked_state();
  state.compute = zeros(at::kFloat);
  EXPECT_THAT(message_of(state, normal()), HasSubstr("expected compute"));
  state = masked_state();
  state.mask = zeros();
  EXPECT_THAT(message_of(state, normal()), HasSubstr("expected mask"));
}

TEST_P(MaskedAdamW, StepsAreCountedFromOne) {
  AdamWState state = masked_state();
  EXPECT_THROW(masked_adamw(state, normal(), {1e-2, 0}), std::invalid_argument);
}

}  // namespace
}  // namespace coppice
