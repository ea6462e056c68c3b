#include "stages/model/routing.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/tensor.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::IsCloseTo;

constexpr int64_t kTokens = 17, kExperts = 5, kPerToken = 2;

ExpertSpec experts() {
  ExpertSpec experts;
  experts.count = kExperts;
  experts.per_token = kPerToken;
  return experts;
}

/// [tokens, experts]: the weight of each expert, 0 where the token does not go there.
at::Tensor as_table(const Routing& routing) {
  at::Tensor table = at::zeros({kTokens, kExperts}, at::kFloat);
  int64_t first = 0;
  for (int64_t expert = 0; expert < kExperts; ++expert) {
    for (int64_t i = 0; i < routing.counts[size_t(expert)]; ++i, ++first) {
      const int64_t token = routing.tokens[first].item<int64_t>();
      table[token][expert] = routing.weights[first][0].to(at::kFloat);
    }
  }
  EXPECT_EQ(first, routing.tokens.size(0));
  return table;
}

/// The same, token by token.
at::Tensor expected_table(const at::Tensor& logits, bool sum_to_one) {
  at::Tensor table = at::zeros({kTokens, kExperts}, at::kFloat);
  for (int64_t token = 0; token < kTokens; ++token) {
    std::vector<double> probability;
    for (int64_t expert = 0; expert < kExperts; ++expert) {
      probability.push_back(std::exp(logits[token][expert].item<double>()));
    }
    const double all = std::accumulate(probability.begin(), probability.end(), 0.0);
    std::vector<int64_t> order(kExperts);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return probability[size_t(a)] > probability[size_t(b)];
    });
    const double chosen = probability[size_t(order[0])] + probability[size_t(order[1])];
    for (int64_t i = 0; i < kPerToken; ++i) {
      const int64_t expert = order[size_t(i)];
      table[token][expert] = probability[size_t(expert)] / (sum_to_one ? chosen : all);
    }
  }
  return table;
}

TEST(Routing, EveryTokenGoesToItsMostProbableExperts) {
  at::manual_seed(1);
  const at::Tensor logits = at::randn({kTokens, kExperts});
  EXPECT_THAT(as_table(route(experts(), logits)), IsCloseTo(expected_table(logits, false)));
}

TEST(Routing, WeightsOfATokenSumToOneWhereTheFamilySaysSo) {
  at::manual_seed(2);
  ExpertSpec spec = experts();
  spec.sum_to_one = true;
  const at::Tensor logits = at::randn({kTokens, kExperts});
  EXPECT_THAT(as_table(route(spec, logits)), IsCloseTo(expected_table(logits, true)));
}

TEST(Routing, TokensOfAnExpertAreInAscendingOrder) {
  const Routing routing = route(
      experts(),
      at::tensor({3., 2., 0., 0., 0., 0., 1., 2., 0., 0., 2., 1., 0., 0., 0.}).view({3, kExperts}));
  EXPECT_THAT(routing.counts, ElementsAre(2, 3, 1, 0, 0));
  const std::vector<int64_t> tokens(routing.tokens.const_data_ptr<int64_t>(),
                                    routing.tokens.const_data_ptr<int64_t>() + 6);
  EXPECT_THAT(tokens, ElementsAre(0, 2, 0, 1, 2, 1));
}

TEST(Routing, WeightsAreRoundedWhereTheFamilySaysSo) {
  at::manual_seed(3);
  ExpertSpec spec = experts();
  const at::Tensor logits = at::randn({kTokens, kExperts}).to(at::kBFloat16);
  EXPECT_EQ(route(spec, logits).weights.scalar_type(), at::kFloat);
  spec.round_weights = true;
  EXPECT_EQ(route(spec, logits).weights.scalar_type(), at::kBFloat16);
}

}  // namespace
}  // namespace coppice
