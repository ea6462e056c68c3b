#include "stages/ops/grouped_attention.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/played_backend.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

constexpr int64_t kHeads = 6, kKvHeads = 2, kLength = 5, kHeadDim = 8;

/// Head by head, as the formula reads. mask bool [length, keys].
at::Tensor head_by_head(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                        const at::Tensor& mask) {
  std::vector<at::Tensor> heads;
  for (int64_t head = 0; head < kHeads; ++head) {
    const int64_t shared = head / (kHeads / kKvHeads);
    const at::Tensor scores =
        at::matmul(q.select(1, head), k.select(1, shared).transpose(1, 2)).div(std::sqrt(kHeadDim));
    const at::Tensor seen =
        scores.masked_fill(mask.logical_not(), -std::numeric_limits<float>::infinity());
    heads.push_back(at::matmul(at::softmax(seen, -1), v.select(1, shared)));
  }
  return at::stack(heads, 1);
}

class GroupedAttention : public ::testing::TestWithParam<at::Device> {
 protected:
  at::Tensor draw(int64_t heads) const { return at::randn({2, heads, kLength, kHeadDim}); }
  at::Tensor there(const at::Tensor& tensor) const { return tensor.to(GetParam()); }

  at::Tensor q = draw(kHeads), k = draw(kKvHeads), v = draw(kKvHeads);
  at::Tensor distance = at::arange(kLength).unsqueeze(1) - at::arange(kLength);
};

TEST_P(GroupedAttention, CausalIsTheFormula) {
  const at::Tensor found = grouped_attention(there(q), there(k), there(v), {}, Causal::kYes);
  EXPECT_THAT(found.to(at::kCPU), IsCloseTo(head_by_head(q, k, v, distance.ge(0))));
}

TEST_P(GroupedAttention, WithoutAMaskEverythingIsSeen) {
  const at::Tensor found = grouped_attention(there(q), there(k), there(v), {}, Causal::kNo);
  EXPECT_THAT(found.to(at::kCPU), IsCloseTo(head_by_head(q, k, v, distance.ge(-kLength))));
}

TEST_P(GroupedAttention, AMaskIsTheFormula) {
  const at::Tensor mask = distance.ge(0).logical_and(distance.lt(2));
  const at::Tensor found =
      grouped_attention(there(q), there(k), there(v), there(mask), Causal::kNo);
  EXPECT_THAT(found.to(at::kCPU), IsCloseTo(head_by_head(q, k, v, mask)));
}

TEST_P(GroupedAttention, GradientsOfAHeadThatIsSharedAddUp) {
  const auto gradients = [&](auto attend, at::Device device) {
    std::vector<at::Tensor> leaves;
    for (const at::Tensor& tensor : {q, k, v}) {
      leaves.push_back(tensor.to(device).clone().requires_grad_(true));
    }
    attend(leaves).square().sum().backward();
    return leaves;
  };
  const auto expected = gradients(
      [&](const auto& x) { return head_by_head(x[0], x[1], x[2], distance.ge(0)); }, at::kCPU);
  const auto found = gradients(
      [&](const auto& x) { return grouped_attention(x[0], x[1], x[2], {}, Causal::kYes); },
      GetParam());
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_THAT(found[i].grad().to(at::kCPU), IsCloseTo(expected[i].grad())) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, GroupedAttention,
                         ::testing::Values(at::Device(at::kCPU), testing::played_device()),
                         [](const auto& device) {
                           return device.param.is_cpu() ? "cpu" : "played";
                         });

}  // namespace
}  // namespace coppice
