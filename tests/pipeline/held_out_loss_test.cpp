#include "pipeline/held_out_loss.h"

#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

constexpr int64_t kSeqlen = 5, kWindows = 4, kHidden = 20, kVocab = 31;

TEST(HeldOutLoss, IsTheMeanNextTokenLossOfEachModelInChunks) {
  at::manual_seed(3);
  TokenWindows tokens;
  tokens.seqlen = kSeqlen;
  for (int64_t i = 0; i < kWindows * kSeqlen; ++i) tokens.ids.push_back(int32_t(i * 7 % kVocab));
  const Architecture architecture = testing::tiny_llama();
  const at::Tensor head = at::randn({kVocab, kHidden});
  const std::vector<at::Tensor> hidden = {at::randn({2 * kSeqlen, kHidden}),
                                          at::randn({2 * kSeqlen, kHidden})};
  FinalWeights before;
  before.norm.gain = at::randn({kHidden});
  HeldOutLoss loss(tokens, 2, hidden.size(), at::kCPU);
  loss.add(architecture, head.narrow(0, 10, 21), before, 10, hidden);
  loss.add(architecture, head.narrow(0, 0, 10), before, 0, hidden);
  const std::vector<double> losses = loss.losses();
  for (size_t model = 0; model < hidden.size(); ++model) {
    double sum = 0;
    for (int64_t window = 0; window < 2; ++window) {
      const at::Tensor log_p = at::log_softmax(
          at::linear(
              head_input(architecture, before, hidden[model].narrow(0, window * kSeqlen, kSeqlen)),
              head),
          1);
      for (int64_t i = 0; i + 1 < kSeqlen; ++i) {
        sum -= log_p[i][tokens.window(2 + window)[size_t(i + 1)]].item<double>();
      }
    }
    EXPECT_NEAR(losses[model], sum / (2 * (kSeqlen - 1)), 1e-5);
  }
}

TEST(HeldOutLoss, AModelThatOverflowsCostsTheOthersNothing) {
  TokenWindows tokens;
  tokens.seqlen = kSeqlen;
  tokens.ids.resize(2 * kSeqlen);
  FinalWeights before;
  before.norm.gain = at::ones({kHidden});
  HeldOutLoss loss(tokens, 1, 2, at::kCPU);
  const at::Tensor hidden = at::ones({kSeqlen, kHidden});
  const at::Tensor overflown =
      at::full({kSeqlen, kHidden}, std::numeric_limits<double>::infinity());
  loss.add(testing::tiny_llama(), at::zeros({kVocab, kHidden}), before, 0, {overflown, hidden});
  EXPECT_FALSE(std::isfinite(loss.losses()[0]));
  EXPECT_NEAR(loss.losses()[1], std::log(double(kVocab)), 1e-6);
}

TEST(HiddenError, IsRelativeToTheDenseModel) {
  const at::Tensor dense = at::tensor({3.0, 4.0}), hidden = at::tensor({3.0, 3.0});
  EXPECT_DOUBLE_EQ(hidden_error(hidden, dense), 1.0 / 25);
}

}  // namespace
}  // namespace coppice
