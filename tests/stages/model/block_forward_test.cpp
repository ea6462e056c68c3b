#include "stages/model/block_forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn_like.h>
#include <gtest/gtest.h>

#include "stages/model/head.h"
#include "stages/model/norm.h"
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

class GoldenForward : public ::testing::TestWithParam<const char*> {
 protected:
  const Golden golden_{GetParam()};
  const Architecture& architecture_ = golden_.architecture();
  const at::ScalarType dtype_ = golden_.expected("hidden.0").scalar_type();
  const RotaryTable rotary_ =
      make_rotary_table(architecture_.rope, architecture_.head_dim, 64, dtype_, at::kCPU);

  at::Tensor half(Half half, int block, const std::string& input) const {
    return forward_half(half, architecture_, golden_.block(block), rotary_,
                        as_batch(golden_.expected(input)));
  }
  at::Tensor last_normed() const {
    const std::string last = "hidden." + std::to_string(architecture_.num_blocks);
    const at::Tensor x = golden_.expected(last).flatten(0, 1);
    return golden_.weight(architecture_.final_norm) * rms_normalize(x, architecture_.norm_epsilon);
  }
  at::Tensor head() const {
    return golden_.weight(architecture_.tied ? architecture_.embedding : architecture_.head);
  }
};

TEST_P(GoldenForward, AttentionHalvesEqualTransformers) {
  for (int block = 0; block < architecture_.num_blocks; ++block) {
    const std::string b = std::to_string(block);
    EXPECT_THAT(half(Half::kAttention, block, "hidden." + b),
                IsCloseTo(golden_.expected("half." + b).flatten(0, 1)));
  }
}

TEST_P(GoldenForward, MlpHalvesEqualTransformers) {
  for (int block = 0; block < architecture_.num_blocks; ++block) {
    EXPECT_THAT(half(Half::kMlp, block, "half." + std::to_string(block)),
                IsCloseTo(golden_.expected("hidden." + std::to_string(block + 1)).flatten(0, 1)));
  }
}

TEST_P(GoldenForward, EmbeddingRowsAreTheFirstHiddenStates) {
  const at::Tensor rows = golden_.weight(architecture_.embedding);
  EXPECT_THAT(at::embedding(rows, golden_.expected("input_ids")),
              testing::IsIdenticalTo(golden_.expected("hidden.0")));
}

TEST_P(GoldenForward, LogitsEqualTransformers) {
  EXPECT_THAT(at::linear(last_normed(), head()),
              IsCloseTo(golden_.expected("logits").flatten(0, 1)));
}

TEST_P(GoldenForward, LossInVocabularyChunksEqualsTransformers) {
  const at::Tensor ids = golden_.expected("input_ids");
  const int64_t windows = ids.size(0), predicted = ids.size(1) - 1;
  RunningLogSumExp losses(ids.narrow(1, 1, predicted).flatten());
  const at::Tensor normed = last_normed().view({windows, predicted + 1, -1});
  const at::Tensor positions = normed.narrow(1, 0, predicted).flatten(0, 1);
  for (int64_t row = 0; row < architecture_.vocab; row += 17) {
    const int64_t rows = std::min<int64_t>(17, architecture_.vocab - row);
    losses.add(0, head_logits(positions, head().narrow(0, row, rows)), row);
  }
  const double expected = golden_.expected("nll").item<double>();
  EXPECT_NEAR(losses.nll().mean().item<double>(), expected, testing::tolerance(dtype_) * expected);
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, GoldenForward,
                         ::testing::Values("llama_fp32", "llama_bias_llama3_fp32", "llama_bf16"),
                         [](const auto& test) { return std::string(test.param); });

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
    return attention_half(architecture, weights, rotary, {hidden, std::move(lengths)});
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

TEST(BlockForward, ObserverSeesEverySharedInputOnce) {
  const Block block(at::kFloat);
  std::vector<std::pair<std::string, int64_t>> seen;
  const InputObserver observe = [&](const std::string& input, const at::Tensor& x) {
    seen.emplace_back(input, x.size(1));
  };
  for (const Half half : {Half::kAttention, Half::kMlp}) {
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
  for (auto& [role, gain] : weights.norms) tensors.push_back(&gain);
  return tensors;
}

class BlockGradient : public ::testing::TestWithParam<HalfRange> {};

TEST_P(BlockGradient, EqualsFiniteDifferences) {
  testing::TinySpan span(2, at::kDouble, at::kDouble);
  BlockWeights weights = span.job.dense[0];
  const MicroBatch x{at::randn({14, 20}, at::TensorOptions(at::kDouble)), {7, 7}};
  const at::Tensor direction = at::randn_like(x.hidden);
  const auto loss = [&] {
    return (window_output(span.job, GetParam(), {{0, weights}}, x) * direction).sum();
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

INSTANTIATE_TEST_SUITE_P(Windows, BlockGradient,
                         ::testing::Values(HalfRange{0, 1}, HalfRange{1, 2}, HalfRange{0, 2}));

}  // namespace
}  // namespace coppice
