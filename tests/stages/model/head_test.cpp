#include "stages/model/head.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/randn.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

constexpr int64_t kTokens = 13, kHidden = 8, kVocab = 29;

struct Head {
  at::Tensor normed = at::randn({kTokens, kHidden}) * 4;
  at::Tensor rows = at::randn({kVocab, kHidden});
  at::Tensor targets = at::randint(kVocab, {kTokens}, at::kLong);

  at::Tensor expected() const {
    const at::Tensor log_p = at::log_softmax(at::linear(normed, rows), 1);
    return log_p.gather(1, targets.unsqueeze(1)).squeeze(1).neg();
  }
  void add(RunningLogSumExp& sum, int64_t token, int64_t tokens, int64_t row, int64_t count) const {
    sum.add(token, head_logits(normed.narrow(0, token, tokens), rows.narrow(0, row, count)), row);
  }
};

TEST(RunningLogSumExp, OneChunkIsCrossEntropy) {
  const Head head;
  RunningLogSumExp sum(head.targets);
  head.add(sum, 0, kTokens, 0, kVocab);
  EXPECT_THAT(sum.nll(), IsCloseTo(head.expected()));
}

TEST(RunningLogSumExp, VocabularyChunksMayComeInAnyOrder) {
  const Head head;
  RunningLogSumExp sum(head.targets);
  head.add(sum, 0, kTokens, 20, 9);
  head.add(sum, 0, kTokens, 0, 7);
  head.add(sum, 0, kTokens, 7, 13);
  EXPECT_THAT(sum.nll(), IsCloseTo(head.expected()));
}

TEST(RunningLogSumExp, PositionsMayBeSplit) {
  const Head head;
  RunningLogSumExp sum(head.targets);
  for (const int64_t row : {0, 10}) {
    head.add(sum, 5, kTokens - 5, row, row == 0 ? 10 : 19);
    head.add(sum, 0, 5, row, row == 0 ? 10 : 19);
  }
  EXPECT_THAT(sum.nll(), IsCloseTo(head.expected()));
}

TEST(RunningLogSumExp, LargeLogitsDoNotOverflow) {
  Head head;
  head.normed = head.normed * 1000;
  RunningLogSumExp sum(head.targets);
  head.add(sum, 0, kTokens, 0, 11);
  head.add(sum, 0, kTokens, 11, 18);
  EXPECT_THAT(sum.nll(), IsCloseTo(head.expected()));
}

}  // namespace
}  // namespace coppice
