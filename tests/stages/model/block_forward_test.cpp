#include "stages/model/block_forward.h"

#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn_like.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <tuple>

#include "stages/model/head.h"
#include "stages/model/norm.h"
#include "stages/model/stem.h"
#include "stages/reconstruct/window_loss.h"
#include "tests/support/golden.h"
#include "tests/support/tiny_llama.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::Golden;
using testing::IsCloseTo;

/// [windows, seqlen, hidden] as sequences laid end to end.
MicroBatch as_batch(const at::Tensor& hidden) {
  const std::vector<int> lengths(static_cast<size_t>(hidden.size(0)), int(hidden.size(1)));
  return {hidden.flatten(0, 1), lengths};
}

class GoldenForward : public ::testing::TestWithParam<std::string> {
 protected:
  const Golden golden_{GetParam()};
  const Architecture& architecture_ = golden_.architecture();
  const at::ScalarType dtype_ = golden_.compute_dtype();
  const int64_t seqlen_ = golden_.expected("input_ids").size(1);
  const RotaryTable rotary_ =
      make_rotary_table(architecture_.rope, architecture_.head_dim, seqlen_, dtype_, at::kCPU);

  GoldenForward() { at::set_num_threads(1); }

  at::Tensor half(int half, const std::string& input) const {
    return forward_half(half, architecture_, golden_.block(half / 2), rotary_,
                        as_batch(golden_.expected(input).to(dtype_)));
  }
  at::Tensor weight(const std::string& name) const { return golden_.weight(name).to(dtype_); }
  at::Tensor last_normed() const {
    const std::string last = "hidden." + std::to_string(architecture_.num_blocks);
    const at::Tensor x = golden_.expected(last).flatten(0, 1).to(dtype_);
    const auto tensor = [this](const std::string& name) { return weight(name); };
    return head_input(architecture_, gather_final(architecture_, tensor), x);
  }
};

TEST_P(GoldenForward, AttentionHalvesEqualTransformers) {
  for (int block = 0; block < architecture_.num_blocks; ++block) {
    const std::string b = std::to_string(block);
    EXPECT_THAT(half(2 * block, "hidden." + b),
                IsCloseTo(golden_.expected("half." + b).flatten(0, 1)));
  }
}

TEST_P(GoldenForward, MlpHalvesEqualTransformers) {
  for (int block = 0; block < architecture_.num_blocks; ++block) {
    EXPECT_THAT(half(2 * block + 1, "half." + std::to_string(block)),
                IsCloseTo(golden_.expected("hidden." + std::to_string(block + 1)).flatten(0, 1)));
  }
}

TEST_P(GoldenForward, EmbeddedTokensAreTheFirstHiddenStates) {
  const auto tensor = [this](const std::string& name) { return weight(name); };
  const StemWeights stem = gather_stem(architecture_, tensor);
  const at::Tensor ids = golden_.expected("input_ids"), expected = golden_.expected("hidden.0");
  for (int64_t window = 0; window < ids.size(0); ++window) {
    const at::Tensor rows = at::embedding(weight(architecture_.embedding), ids[window]);
    EXPECT_THAT(embed(architecture_, stem, rows), IsCloseTo(expected[window]));
  }
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenForward, ::testing::ValuesIn(testing::golden_folders()),
                         [](const auto& test) { return test.param; });

/// Encoders have none.
class GoldenLogits : public GoldenForward {
 protected:
  void SetUp() override {
    if (architecture_.head.empty()) GTEST_SKIP() << "no head";
  }
};

TEST_P(GoldenLogits, EqualTransformers) {
  EXPECT_THAT(at::linear(last_normed(), weight(architecture_.head)),
              IsCloseTo(golden_.expected("logits").flatten(0, 1)));
}

TEST_P(GoldenLogits, LossInVocabularyChunksEqualsTransformers) {
  const at::Tensor ids = golden_.expected("input_ids");
  const int64_t windows = ids.size(0), predicted = ids.size(1) - 1;
  RunningLogSumExp losses(ids.narrow(1, 1, predicted).flatten());
  const at::Tensor normed = last_normed().view({windows, predicted + 1, -1});
  const at::Tensor positions = normed.narrow(1, 0, predicted).flatten(0, 1);
  for (int64_t row = 0; row < architecture_.vocab; row += 17) {
    const int64_t rows = std::min<int64_t>(17, architecture_.vocab - row);
    losses.add(0, head_logits(positions, weight(architecture_.head).narrow(0, row, rows)), row);
  }
  const double expected = golden_.expected("nll").item<double>();
  const double tolerance = testing::tolerance(golden_.expected("logits").scalar_type());
  EXPECT_NEAR(losses.nll().mean().item<double>(), expected, tolerance * expected);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenLogits, ::testing::ValuesIn(testing::golden_folders()),
                         [](const auto& test) { return test.param; });

struct Block {
  explicit Block(at::ScalarType dtype)
      : weights(testing::random_block(architecture, dtype)),
        rotary(make_rotary_table(architecture.rope, architecture.head_dim, 64, dtype, at::kCPU)),
        x(at::randn({14, architecture.hidden}, at::TensorOptions(dtype))) {}

  Architecture architecture = testing::tiny_llama();
  BlockWeights weights;
  RotaryTable rotary;
  at::Tensor x;

  at::Tensor attention(const at::Tensor& hidden, std::vector<int> lengths) const {
    return attention_half(architecture, 0, weights, rotary, {hidden, std::move(lengths)});
  }
};

TEST(BlockForward, SequencesOfDifferentLengthsDoNotSeeEachOther) {
  const Block block(at::kDouble);
  const at::Tensor alone = at::cat({block.attention(block.x.narrow(0, 0, 3), {3}),
                                    block.attention(block.x.narrow(0, 3, 6), {6}),
                                    block.attention(block.x.narrow(0, 9, 5), {5})});
  EXPECT_THAT(block.attention(block.x, {3, 6, 5}), IsCloseTo(alone));
}

TEST(BlockForward, NoTokenSeesLaterOnes) {
  const Block block(at::kDouble);
  at::Tensor changed = block.x.clone();
  changed[13].add_(1);
  const at::Tensor before = block.attention(block.x, {14}), after = block.attention(changed, {14});
  EXPECT_THAT(after.narrow(0, 0, 13), IsCloseTo(before.narrow(0, 0, 13)));
  EXPECT_FALSE(after[13].equal(before[13]));
}

/// Which tokens' outputs change with token `changed`: by attention of `length` tokens.
std::vector<int64_t> seen_by(const Block& block, int64_t length, int64_t changed) {
  const at::Tensor x =
      at::randn({length, block.architecture.hidden}, at::TensorOptions(at::kDouble));
  at::Tensor other = x.clone();
  other[changed].add_(1);
  const at::Tensor difference =
      (block.attention(x, {int(length)}) - block.attention(other, {int(length)})).abs().amax(1);
  std::vector<int64_t> tokens;
  for (int64_t token = 0; token < length; ++token) {
    if (difference[token].item<double>() > 1e-9) tokens.push_back(token);
  }
  return tokens;
}

TEST(BlockForward, AWindowCountsItsOwnToken) {
  Block block(at::kDouble);
  block.architecture.attention_windows = {3};
  EXPECT_THAT(seen_by(block, 14, 5), ::testing::ElementsAre(5, 6, 7));
  block.architecture.attention_windows = {1};
  EXPECT_THAT(seen_by(block, 14, 5), ::testing::ElementsAre(5));
}

TEST(BlockForward, EveryBlockHasAWindowOfItsOwn) {
  Block block(at::kDouble);
  block.architecture.attention_windows = {0, 3};
  const MicroBatch x{block.x, {14}};
  const at::Tensor all = forward_half(0, block.architecture, block.weights, block.rotary, x);
  const at::Tensor windowed = forward_half(2, block.architecture, block.weights, block.rotary, x);
  EXPECT_THAT(windowed.narrow(0, 0, 3), IsCloseTo(all.narrow(0, 0, 3)));
  EXPECT_FALSE(windowed[3].equal(all[3]));
}

// Beyond 512 tokens the queries are worked on in parts.
TEST(BlockForward, AWindowIsTheSameAcrossParts) {
  Block block(at::kDouble);
  block.rotary = make_rotary_table(block.architecture.rope, block.architecture.head_dim, 1100,
                                   at::kDouble, at::kCPU);
  block.architecture.attention_windows = {600};
  std::vector<int64_t> expected(600);
  std::iota(expected.begin(), expected.end(), 300);
  EXPECT_EQ(seen_by(block, 1100, 300), expected);
}

TEST(BlockForward, AWindowThatSeesAllIsNone) {
  Block block(at::kFloat);
  const at::Tensor plain = block.attention(block.x, {14});
  block.architecture.attention_windows = {14};
  EXPECT_THAT(block.attention(block.x, {14}), testing::IsIdenticalTo(plain));
}

TEST(BlockForward, BidirectionalTokensSeeTheirWholeSequenceAndNoOther) {
  Block block(at::kDouble);
  block.architecture.mask = AttentionMask::kBidirectional;
  std::vector<int64_t> all(9);
  std::iota(all.begin(), all.end(), 0);
  EXPECT_EQ(seen_by(block, 9, 4), all);
  const at::Tensor alone = block.attention(block.x.narrow(0, 0, 6), {6});
  EXPECT_THAT(block.attention(block.x, {6, 8}).narrow(0, 0, 6), IsCloseTo(alone));
}

TEST(BlockForward, ObserverSeesEverySharedInputOnce) {
  const Block block(at::kFloat);
  std::vector<std::pair<std::string, int64_t>> seen;
  const InputObserver observe = [&](const std::string& input, const at::Tensor& x) {
    seen.emplace_back(input, x.size(1));
  };
  for (const int half : {0, 1}) {
    forward_half(half, block.architecture, block.weights, block.rotary, {block.x, {7, 7}}, observe);
  }
  using ::testing::Pair;
  EXPECT_THAT(seen, ::testing::ElementsAre(Pair("attention_in", 20), Pair("attention_out", 24),
                                           Pair("mlp_in", 20), Pair("mlp_units", 33)));
}

TEST(BlockForward, InputIsLeftAsItWas) {
  const Block block(at::kFloat);
  const at::Tensor copy = block.x.clone();
  block.attention(block.x, {14});
  mlp_half(block.architecture, block.weights, {block.x, {14}});
  EXPECT_THAT(block.x, testing::IsIdenticalTo(copy));
}

/// Every tensor of the block as a leaf, by address.
std::vector<at::Tensor*> all_tensors(BlockWeights& weights) {
  std::vector<at::Tensor*> tensors;
  for (auto& [role, linear] : weights.linears) {
    tensors.push_back(&linear.weight);
    tensors.push_back(&linear.bias);
  }
  for (auto& [role, norm] : weights.norms) {
    tensors.push_back(&norm.gain);
    if (norm.bias.defined()) tensors.push_back(&norm.bias);
  }
  return tensors;
}

/// What a family may have otherwise than the block of tiny_llama().
struct Form {
  const char* name;
  void (*change)(Architecture& architecture);
};

void norms_after(Architecture& architecture) {
  for (NormSpec& norm : architecture.norms) norm.role.replace(0, 6, "after");
}
void plain_mlp(Architecture& architecture) {
  architecture.mlp_kind = MlpKind::kPlain;
  architecture.activation = Activation::kGelu;
  std::erase_if(architecture.linears, [](const auto& linear) { return linear.role == "gate"; });
}

const std::vector<Form> kForms = {
    {"llama", [](Architecture&) {}},
    {"layer_norms", [](Architecture& a) { a.norm_kind = NormKind::kLayer; }},
    {"rms_norms_after", norms_after},
    {"layer_norms_after",
     [](Architecture& a) {
       a.norm_kind = NormKind::kLayer;
       norms_after(a);
     }},
    {"plain_mlp", plain_mlp},
    {"gated_gelu", [](Architecture& a) { a.activation = Activation::kGeluTanh; }},
    {"norms_of_heads",
     [](Architecture& a) {
       a.norms.push_back({"q_norm", "self_attn.q_layernorm", Half::kAttention, a.head_dim});
       a.norms.push_back({"k_norm", "self_attn.k_layernorm", Half::kAttention, a.head_dim});
     }},
    {"windowed", [](Architecture& a) { a.attention_windows = {3}; }},
    {"bidirectional",
     [](Architecture& a) {
       a.mask = AttentionMask::kBidirectional;
       a.rope.kind = RopeKind::kNone;
     }},
};

class BlockGradient : public ::testing::TestWithParam<std::tuple<Form, HalfRange>> {};

TEST_P(BlockGradient, EqualsFiniteDifferences) {
  const Form form = std::get<Form>(GetParam());
  const HalfRange halves = std::get<HalfRange>(GetParam());
  Architecture architecture = testing::tiny_llama();
  form.change(architecture);
  at::set_num_threads(1);
  at::manual_seed(3);
  BlockWeights weights = testing::random_block(architecture, at::kDouble);
  const RotaryTable rotary =
      make_rotary_table(architecture.rope, architecture.head_dim, 64, at::kDouble, at::kCPU);
  testing::MemoryBoundaries unused;
  const SpanJob span{{0, 2}, architecture, {weights}, at::kDouble, rotary, unused, {}, {}};
  const MicroBatch x{at::randn({14, 20}, at::TensorOptions(at::kDouble)), {7, 7}};
  const at::Tensor direction = at::randn_like(x.hidden);
  const auto loss = [&] {
    return (window_output(span, halves, {{0, weights}}, x) * direction).sum();
  };
  std::vector<at::Tensor> steps;
  for (at::Tensor* tensor : all_tensors(weights)) {
    tensor->requires_grad_(true);
    steps.push_back(at::randn_like(*tensor).detach());
  }
  loss().backward();
  const at::NoGradGuard no_graph;
  constexpr double kStep = 1e-5;
  double slope = 0;
  const auto move = [&](double by) {
    size_t i = 0;
    for (at::Tensor* tensor : all_tensors(weights)) tensor->add_(steps[i++], by);
  };
  size_t i = 0;
  for (at::Tensor* tensor : all_tensors(weights)) {
    if (tensor->grad().defined()) slope += (tensor->grad() * steps[i]).sum().item<double>();
    ++i;
  }
  move(kStep);
  const double above = loss().item<double>();
  move(-2 * kStep);
  const double below = loss().item<double>();
  EXPECT_NEAR(slope, (above - below) / (2 * kStep), 1e-6 * std::abs(slope));
}

std::string case_name(const ::testing::TestParamInfo<std::tuple<Form, HalfRange>>& test) {
  const auto& [form, halves] = test.param;
  return fmt::format("{}_{}_to_{}", form.name, halves.first, halves.last);
}

INSTANTIATE_TEST_SUITE_P(Forms, BlockGradient,
                         ::testing::Combine(::testing::ValuesIn(kForms),
                                            ::testing::Values(HalfRange{0, 1}, HalfRange{1, 2},
                                                              HalfRange{0, 2})),
                         case_name);

}  // namespace
}  // namespace coppice
