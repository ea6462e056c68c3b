// Costs of a half against loops over what it is made of.
#include "stages/model/half_cost.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "tests/support/tiny_moe.h"

namespace coppice {
namespace {

constexpr Half kHalves[] = {Half::kAttention, Half::kMlp};
constexpr double kTokens = 70;

/// Elements that one token alone keeps.
double kept_a_token(const Architecture& architecture, Half half) {
  return kept_bytes(architecture, half, {.sequences = 1, .seqlen = 1, .element = 1});
}

TEST(HalfCost, ParametersOfBothHalvesAreTheTensorsOfABlock) {
  const Architecture architecture = testing::tiny_llama();
  int64_t attention = 0, mlp = 0;
  for (const NamedShape& tensor : block_tensors(architecture, 0)) {
    const bool is_mlp = tensor.name.find("mlp") != std::string::npos ||
                        tensor.name.find("post_attention") != std::string::npos;
    (is_mlp ? mlp : attention) +=
        std::accumulate(tensor.shape.begin(), tensor.shape.end(), int64_t{1}, std::multiplies<>());
  }
  EXPECT_EQ(half_parameters(architecture, Half::kAttention), attention);
  EXPECT_EQ(half_parameters(architecture, Half::kMlp), mlp);
}

// A multiplication and an addition per token and weight.
TEST(HalfCost, ProductsOfLinearsAreCountedWeightByWeight) {
  const Architecture architecture = testing::tiny_llama();
  for (const Half half : kHalves) {
    double flop = 0;
    for (const LinearSpec& linear : architecture.linears) {
      for (int64_t row = 0; row < linear.out && linear.half == half; ++row) {
        flop += 2 * kTokens * double(linear.in);
      }
    }
    EXPECT_EQ(linear_flop(architecture, half, kTokens), flop);
  }
}

TEST(HalfCost, FirstLinearsAreThoseThatReadTheNorm) {
  const Architecture architecture = testing::tiny_llama();
  const auto flop = [&](const std::string& role) {
    const LinearSpec& linear = architecture.linear(role);
    return 2 * kTokens * double(linear.in * linear.out);
  };
  EXPECT_EQ(first_linear_flop(architecture, Half::kAttention, kTokens),
            flop("q") + flop("k") + flop("v"));
  EXPECT_EQ(first_linear_flop(architecture, Half::kMlp, kTokens), flop("gate") + flop("up"));
}

// Scores and their weighted sum: a multiplication and an addition each, per head, channel and pair
// of a token with one that is not behind it. The diagonal is counted by half.
TEST(HalfCost, AttentionIsCountedPairByPair) {
  const Architecture architecture = testing::tiny_llama();
  constexpr int64_t kSeqlen = 50, kSequences = 3;
  double pairs = 0;
  for (int64_t token = 0; token < kSeqlen; ++token) {
    for (int64_t seen = 0; seen <= token; ++seen) pairs += seen == token ? 0.5 : 1;
  }
  const double flop = 4 * pairs * double(kSequences * architecture.heads * architecture.head_dim);
  EXPECT_DOUBLE_EQ(
      attention_flop(architecture, Half::kAttention, double(kSeqlen * kSequences), kSeqlen), flop);
}

TEST(HalfCost, AttentionInWindowsIsTheMeanOverTheBlocks) {
  Architecture architecture = testing::tiny_llama();
  architecture.attention_windows = {0, 7};
  constexpr int64_t kSeqlen = 50;
  double pairs = 0;
  for (const int64_t window : {kSeqlen, int64_t{7}}) {
    for (int64_t token = 0; token < kSeqlen; ++token) {
      for (int64_t seen = std::max<int64_t>(0, token - window + 1); seen <= token; ++seen) {
        pairs += (seen == token ? 0.5 : 1) / 2;
      }
    }
  }
  const double flop = 4 * pairs * double(architecture.heads * architecture.head_dim);
  EXPECT_DOUBLE_EQ(attention_flop(architecture, Half::kAttention, kSeqlen, kSeqlen), flop);
}

TEST(HalfCost, WithoutAMaskEveryPairIsCounted) {
  Architecture architecture = testing::tiny_llama();
  const double causal = attention_flop(architecture, Half::kAttention, kTokens, 7);
  architecture.mask = AttentionMask::kBidirectional;
  EXPECT_DOUBLE_EQ(attention_flop(architecture, Half::kAttention, kTokens, 7), 2 * causal);
}

TEST(HalfCost, BiasesOfNormsAreParameters) {
  Architecture architecture = testing::tiny_llama();
  const int64_t before = half_parameters(architecture, Half::kMlp);
  architecture.norm_kind = NormKind::kLayer;
  EXPECT_EQ(half_parameters(architecture, Half::kMlp), before + architecture.hidden);
}

TEST(HalfCost, NormsOfHeadsAreKept) {
  Architecture a = testing::tiny_llama();
  const double before = kept_a_token(a, Half::kAttention);
  a.norms.push_back({"q_norm", "self_attn.q_norm", Half::kAttention, a.head_dim});
  a.norms.push_back({"k_norm", "self_attn.k_norm", Half::kAttention, a.head_dim});
  EXPECT_EQ(kept_a_token(a, Half::kAttention) - before, 2 * (a.heads + a.kv_heads) * a.head_dim);
}

TEST(HalfCost, MlpAttendsToNothing) {
  EXPECT_EQ(attention_flop(testing::tiny_llama(), Half::kMlp, kTokens, 7), 0);
}

// x̂; what each linear gives; what the last one reads; x + output.
TEST(HalfCost, KeptActivationsAreCountedTensorByTensor) {
  const Architecture a = testing::tiny_llama();
  const int64_t q = a.heads * a.head_dim, kv = a.kv_heads * a.head_dim;
  EXPECT_EQ(kept_a_token(a, Half::kAttention), a.hidden + (q + kv + kv) + q + a.hidden);
  EXPECT_EQ(kept_a_token(a, Half::kMlp), a.hidden + (a.ffn + a.ffn) + a.ffn + a.hidden);
}

TEST(HalfCost, AllExpertsAndTheRouterAreParameters) {
  const Architecture a = testing::tiny_moe();
  const int64_t expert = 3 * a.hidden * a.ffn + 2 * a.ffn + a.hidden;
  EXPECT_EQ(half_parameters(a, Half::kMlp), 5 * expert + 5 * a.hidden + a.hidden);
}

// Of five experts a token goes through two, and through the router.
TEST(HalfCost, ProductsOfExpertsAreThoseATokenGoesThrough) {
  const Architecture a = testing::tiny_moe();
  const double router = 2 * kTokens * double(5 * a.hidden);
  const double product = 2 * kTokens * double(a.hidden * a.ffn);
  EXPECT_DOUBLE_EQ(linear_flop(a, Half::kMlp, kTokens), 2 * 3 * product + router);
  EXPECT_DOUBLE_EQ(first_linear_flop(a, Half::kMlp, kTokens), 2 * 2 * product + router);
}

TEST(HalfCost, AnExpertReadsItsShareOfTheTokens) {
  const Architecture a = testing::tiny_moe();
  const std::map<std::string, ReadInput> inputs = inputs_of(a, Half::kMlp);
  EXPECT_EQ(inputs.size(), 10u);
  EXPECT_EQ(inputs.at("expert_3_in").width, a.hidden);
  EXPECT_EQ(inputs.at("expert_3_units").width, a.ffn);
  EXPECT_DOUBLE_EQ(inputs.at("expert_3_in").share_of_tokens, 0.4);
  EXPECT_DOUBLE_EQ(inputs_of(a, Half::kAttention).at("attention_in").share_of_tokens, 1);
}

// x̂; logits, probabilities and their softmax; of each of two experts its rows of x̂ and
// gain ∘ x̂, gate, up and what down reads, its output and that weighted.
TEST(HalfCost, KeptActivationsOfExpertsAreCountedTensorByTensor) {
  const Architecture a = testing::tiny_moe();
  EXPECT_EQ(kept_a_token(a, Half::kMlp),
            a.hidden + 3 * 5 + 2 * (2 * a.hidden + 3 * a.ffn + 2 * a.hidden));
}

}  // namespace
}  // namespace coppice
