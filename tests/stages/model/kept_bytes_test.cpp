// What a half keeps for its backward, counted and held.
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "stages/model/half_cost.h"
#include "tests/support/held_tensors.h"
#include "tests/support/tiny_moe.h"

namespace coppice {
namespace {

using testing::HeldTensors;

struct KeptCase {
  std::string name;
  Architecture architecture;
  Half half;
  int64_t seqlen;
};

void PrintTo(const KeptCase& which, std::ostream* out) { *out << which.name; }

Architecture in_windows(std::vector<int64_t> windows) {
  Architecture architecture = testing::tiny_llama();
  architecture.attention_windows = std::move(windows);
  return architecture;
}

/// Every weight is trained, and so is what came before.
BlockWeights trained(const Architecture& architecture) {
  BlockWeights weights = testing::random_block(architecture, at::kFloat);
  for (auto& [role, linear] : weights.linears) {
    linear.weight.requires_grad_();
    if (linear.bias.defined()) linear.bias.requires_grad_();
  }
  for (auto& [role, norm] : weights.norms) norm.gain.requires_grad_();
  if (weights.router.defined()) weights.router.requires_grad_();
  return weights;
}

constexpr int kSequences = 3;

class KeptBytes : public ::testing::TestWithParam<KeptCase> {
 protected:
  KeptBytes() {
    at::set_num_threads(1);
    x_.hidden.requires_grad_();
  }
  at::Tensor output() const {
    return forward_half(which_.half == Half::kAttention ? 0 : 1, which_.architecture, weights_,
                        rotary_, x_);
  }

  const KeptCase& which_ = GetParam();
  const BatchShape batch_{kSequences, which_.seqlen};
  const BlockWeights weights_ = trained(which_.architecture);
  const RotaryTable rotary_ = make_rotary_table(
      which_.architecture.rope, which_.architecture.head_dim, which_.seqlen, at::kFloat, at::kCPU);
  MicroBatch x_{at::randn({kSequences * which_.seqlen, which_.architecture.hidden}),
                std::vector<int>(kSequences, int(which_.seqlen))};
};

TEST_P(KeptBytes, AreThoseOfTheTensorsThatAForwardPassLeaves) {
  const HeldTensors held;
  const at::Tensor kept_alive = output();
  const double kept = kept_bytes(which_.architecture, which_.half, batch_);
  EXPECT_LE(double(held.bytes()), 1.05 * kept);  // beside it a number a row, of norms and softmax
  EXPECT_GE(double(held.bytes()), 0.95 * kept);
}

TEST_P(KeptBytes, AndWhatPassesAreThePeakOfForwardAndBackward) {
  const HeldTensors held;
  const at::Tensor result = output();
  result.backward(result.detach());
  const double counted = kept_bytes(which_.architecture, which_.half, batch_) +
                         passing_bytes(which_.architecture, which_.half, batch_);
  EXPECT_LE(double(held.peak()), 1.05 * counted);
  EXPECT_GE(double(held.peak()), 0.85 * counted);
}

INSTANTIATE_TEST_SUITE_P(
    Halves, KeptBytes,
    ::testing::Values(KeptCase{"Attention", testing::tiny_llama(), Half::kAttention, 700},
                      KeptCase{"Mlp", testing::tiny_llama(), Half::kMlp, 700},
                      KeptCase{"Experts", testing::tiny_moe(), Half::kMlp, 700},
                      KeptCase{"WindowsAsLongAsTheSequence", in_windows({700}), Half::kAttention,
                               700},
                      KeptCase{"Windows", in_windows({40}), Half::kAttention, 1300},
                      KeptCase{"LongWindows", in_windows({600}), Half::kAttention, 1300}),
    [](const auto& which) { return which.param.name; });

TEST(KeptBytesOnAGpu, KeysAndValuesAreSpreadWhereNoKernelSharesThem) {
  const Architecture a = testing::tiny_llama();
  const double spread = 2.0 * double((a.heads - a.kv_heads) * a.head_dim) * 2 * 9 * 4;
  const BatchShape host{2, 9, 4}, gpu{2, 9, 4, false};
  EXPECT_EQ(kept_bytes(a, Half::kAttention, gpu) - kept_bytes(a, Half::kAttention, host), spread);
  EXPECT_EQ(kept_bytes(a, Half::kAttention, {2, 9, 2, false}),
            kept_bytes(a, Half::kAttention, {2, 9, 2}));
  EXPECT_EQ(kept_bytes(a, Half::kMlp, gpu), kept_bytes(a, Half::kMlp, host));
}

}  // namespace
}  // namespace coppice
