#include "stages/retrain/next_token_loss.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cross_entropy_loss.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

constexpr int64_t kSequences = 3, kLength = 9, kHidden = 12, kVocab = 29;

struct Case {
  Architecture architecture;
  OutputHead head{.architecture = architecture,
                  .final = {.norm = {.gain = at::randn({kHidden}), .bias = {}}, .project = {}},
                  .rows = at::randn({kVocab, kHidden})};
  at::Tensor hidden = at::randn({kSequences * kLength, kHidden}).mul(3);
  at::Tensor ids = at::randint(kVocab, {kSequences, kLength}, at::kLong);

  // All tokens at once, operation by operation.
  at::Tensor mean_loss(const at::Tensor& x) const {
    const at::Tensor inverse_rms =
        x.square().mean(1, /*keepdim=*/true).add(architecture.norm_epsilon).rsqrt();
    const at::Tensor logits = at::linear(x * inverse_rms * head.final.norm.gain, head.rows)
                                  .view({kSequences, kLength, kVocab})
                                  .narrow(1, 0, kLength - 1)
                                  .flatten(0, 1);
    return at::cross_entropy_loss(logits, ids.narrow(1, 1, kLength - 1).flatten());
  }
};

class NextTokenLoss : public ::testing::TestWithParam<int64_t> {};

TEST_P(NextTokenLoss, LossAndGradientAreThoseOfPlainCrossEntropy) {
  Case c;
  c.head.logits_at_once = GetParam() * kVocab;
  const at::Tensor x = c.hidden.clone().requires_grad_(true);
  const at::Tensor expected = c.mean_loss(x);
  expected.backward();

  at::Tensor gradient;
  const at::Tensor sum = next_token_loss(c.head, c.hidden, c.ids, &gradient);
  const double predictions = kSequences * (kLength - 1);
  EXPECT_EQ(sum.scalar_type(), at::kDouble);
  EXPECT_NEAR(sum.item<double>() / predictions, expected.item<double>(), 1e-5);
  EXPECT_THAT(gradient, IsCloseTo(x.grad()));
}

INSTANTIATE_TEST_SUITE_P(TokensAtOnce, NextTokenLoss, ::testing::Values(1, 3, 8, 1000));

/// The heads of other families, by the same plain operations.
struct Form {
  const char* name;
  bool has_layer_norm, has_projection;
};

class NextTokenLossOfForm : public ::testing::TestWithParam<Form> {};

TEST_P(NextTokenLossOfForm, LossAndGradientAreThoseOfPlainCrossEntropy) {
  constexpr int64_t kWidth = 7;
  Case c;
  c.architecture.norm_kind = NormKind::kLayer;
  c.head.final = {};
  at::Tensor x = c.hidden.clone().requires_grad_(true);
  at::Tensor input = x;
  if (GetParam().has_layer_norm) {
    c.head.final.norm = {.gain = at::randn({kHidden}), .bias = at::randn({kHidden})};
    const at::Tensor centred = input - input.mean(1, true);
    const at::Tensor inverse =
        centred.square().mean(1, true).add(c.architecture.norm_epsilon).rsqrt();
    input = centred * inverse * c.head.final.norm.gain + c.head.final.norm.bias;
  }
  if (GetParam().has_projection) {
    c.head.final.project = at::randn({kWidth, kHidden});
    c.head.rows = at::randn({kVocab, kWidth});
    input = at::linear(input, c.head.final.project);
  }
  const at::Tensor logits = at::linear(input, c.head.rows)
                                .view({kSequences, kLength, kVocab})
                                .narrow(1, 0, kLength - 1)
                                .flatten(0, 1);
  const at::Tensor expected =
      at::cross_entropy_loss(logits, c.ids.narrow(1, 1, kLength - 1).flatten());
  expected.backward();
  at::Tensor gradient;
  const at::Tensor sum = next_token_loss(c.head, c.hidden, c.ids, &gradient);
  EXPECT_NEAR(sum.item<double>() / (kSequences * (kLength - 1)), expected.item<double>(), 1e-5);
  EXPECT_THAT(gradient, IsCloseTo(x.grad()));
}

INSTANTIATE_TEST_SUITE_P(Forms, NextTokenLossOfForm,
                         ::testing::Values(Form{"layer_norm", true, false},
                                           Form{"layer_norm_and_projection", true, true},
                                           Form{"projection", false, true},
                                           Form{"nothing", false, false}),
                         [](const auto& test) { return test.param.name; });

TEST(NextTokenLoss, LastTokensOfSequencesGetNoGradient) {
  const Case c;
  at::Tensor gradient;
  next_token_loss(c.head, c.hidden, c.ids, &gradient);
  const at::Tensor last = gradient.view({kSequences, kLength, kHidden}).select(1, kLength - 1);
  EXPECT_TRUE(last.eq(0).all().item<bool>());
}

TEST(NextTokenLoss, InBf16IsCloseToFp32) {
  Case c;
  at::Tensor expected, gradient;
  const double sum = next_token_loss(c.head, c.hidden, c.ids, &expected).item<double>();
  const at::Tensor narrow = next_token_loss(c.head, c.hidden.to(at::kBFloat16), c.ids, &gradient);
  EXPECT_NEAR(narrow.item<double>(), sum, 0.02 * sum);
  EXPECT_THAT(gradient, IsCloseTo(expected.to(at::kBFloat16)));
}

TEST(NextTokenLoss, HoldsTheLogitsOfNoMoreTokensThanHaveANextOne) {
  constexpr int64_t kRows = 40, kBytes = 2;
  const auto logits = [](int64_t length, int64_t vocab) {
    return next_token_loss_bytes(length, vocab, kRows, kBytes) - double(vocab * kRows * kBytes);
  };
  EXPECT_EQ(logits(64, 2000), 3 * 4 * 63 * 2000);
  EXPECT_EQ(logits(int64_t{1} << 20, 2048), 3 * 4 * kLogitsAtOnce);
  EXPECT_EQ(logits(64, 2 * kLogitsAtOnce), 3 * 4 * 2 * kLogitsAtOnce);  // of one token
}

}  // namespace
}  // namespace coppice
