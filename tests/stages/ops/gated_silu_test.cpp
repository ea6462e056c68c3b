#include "stages/ops/gated_silu.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/silu.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

class GatedSilu : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  at::Tensor random() const { return (at::randn({7, 61}) * 3).to(GetParam()); }
};

TEST_P(GatedSilu, IsSiluOfTheGateTimesUp) {
  const at::Tensor gate = random(), up = random();
  EXPECT_THAT(gated_silu(gate, up), IsCloseTo(at::silu(gate) * up));
}

TEST_P(GatedSilu, GradientsAreThoseOfTheComposedFormula) {
  const at::Tensor gate = random().requires_grad_(true), up = random().requires_grad_(true);
  const at::Tensor gradient = random();
  (at::silu(gate) * up).backward(gradient);
  const GatedSiluGradients ours = gated_silu_backward(gradient, gate.detach(), up.detach());
  EXPECT_THAT(ours.gate, IsCloseTo(gate.grad()));
  EXPECT_THAT(ours.up, IsCloseTo(up.grad()));
}

TEST_P(GatedSilu, SaturatesWithoutOverflow) {
  const at::Tensor gate = at::linspace(-200, 200, 401).to(GetParam()).view({1, 401});
  EXPECT_THAT(gated_silu(gate, gate), IsCloseTo(at::silu(gate) * gate));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, GatedSilu,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kDouble),
                         [](const auto& test) { return c10::toString(test.param); });

TEST(GatedSiluNan, StaysNan) {
  const at::Tensor gate = at::randn({1, 33}).fill_(NAN), up = at::randn({1, 33});
  EXPECT_TRUE(gated_silu(gate, up).isnan().all().item<bool>());
}

}  // namespace
}  // namespace coppice
