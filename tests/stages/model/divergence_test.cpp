#include "stages/model/divergence.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/log_softmax.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros_like.h>
#include <gtest/gtest.h>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using testing::IsCloseTo;

constexpr int64_t kTokens = 13, kVocab = 29;

struct Pair {
  at::Tensor reference = at::randn({kTokens, kVocab}) * 4;
  at::Tensor model = reference + at::randn({kTokens, kVocab});

  at::Tensor expected_kl() const {
    const at::Tensor p = at::log_softmax(reference, 1), q = at::log_softmax(model, 1);
    return (p.exp() * (p - q)).sum(1);
  }
  at::Tensor kl(const RunningDivergence& divergence) const {
    return divergence.kl(at::logsumexp(reference, 1), at::logsumexp(model, 1));
  }
  void add(RunningDivergence& divergence, int64_t token, int64_t tokens, int64_t row,
           int64_t rows) const {
    const auto part = [&](const at::Tensor& logits) {
      return logits.narrow(0, token, tokens).narrow(1, row, rows);
    };
    divergence.add(token, part(reference), part(model), row);
  }
};

TEST(RunningDivergence, OneChunkIsTheKullbackLeiblerDivergence) {
  const Pair pair;
  RunningDivergence divergence(kTokens, at::kCPU);
  pair.add(divergence, 0, kTokens, 0, kVocab);
  EXPECT_THAT(pair.kl(divergence), IsCloseTo(pair.expected_kl()));
}

TEST(RunningDivergence, ChunksOfVocabularyAndPositionsMayComeInAnyOrder) {
  const Pair pair;
  RunningDivergence divergence(kTokens, at::kCPU);
  pair.add(divergence, 0, kTokens, 20, 9);
  pair.add(divergence, 5, kTokens - 5, 0, 20);
  pair.add(divergence, 0, 5, 7, 13);
  pair.add(divergence, 0, 5, 0, 7);
  EXPECT_THAT(pair.kl(divergence), IsCloseTo(pair.expected_kl()));
  EXPECT_TRUE(at::equal(divergence.agrees(), pair.reference.argmax(1) == pair.model.argmax(1)));
}

TEST(RunningDivergence, AModelDoesNotDivergeFromItself) {
  Pair pair;
  pair.model = pair.reference;
  RunningDivergence divergence(kTokens, at::kCPU);
  pair.add(divergence, 0, kTokens, 0, 11);
  pair.add(divergence, 0, kTokens, 11, kVocab - 11);
  EXPECT_TRUE(at::equal(pair.kl(divergence), at::zeros_like(pair.expected_kl())));
  EXPECT_TRUE(divergence.agrees().all().item<bool>());
}

TEST(RunningDivergence, LargeLogitsDoNotOverflow) {
  Pair pair;
  pair.reference = pair.reference * 100;
  RunningDivergence divergence(kTokens, at::kCPU);
  pair.add(divergence, 0, kTokens, 11, kVocab - 11);
  pair.add(divergence, 0, kTokens, 0, 11);
  EXPECT_THAT(pair.kl(divergence), IsCloseTo(pair.expected_kl()));
}

TEST(RunningDivergence, AgreementIsOfTheBestRowOfTheWholeVocabulary) {
  Pair pair;
  pair.reference = at::zeros_like(pair.reference);
  pair.model = at::zeros_like(pair.reference);
  for (int64_t token = 0; token < kTokens; ++token) {
    pair.reference[token][20] = 5;
    pair.model[token][token < 4 ? 20 : 3] = 5;
  }
  RunningDivergence divergence(kTokens, at::kCPU);
  pair.add(divergence, 0, kTokens, 0, 11);
  pair.add(divergence, 0, kTokens, 11, kVocab - 11);
  EXPECT_EQ(divergence.agrees().sum().item<int64_t>(), 4);
}

}  // namespace
}  // namespace coppice
