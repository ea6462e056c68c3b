#include "pipeline/correlation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace coppice {
namespace {

TEST(Correlation, PearsonOfAStraightLineIsOneAndOfItsMirrorMinusOne) {
  const std::vector<double> x = {1, 2, 5, 7}, up = {3, 5, 11, 15}, down = {-1, -2, -5, -7};
  EXPECT_DOUBLE_EQ(pearson(x, up), 1);
  EXPECT_DOUBLE_EQ(pearson(x, down), -1);
}

// By hand: deviations (−2 −1 0 1 2) and (−1.2 −2.2 0.8 −0.2 2.8); their products sum to 10, their
// squares to 10 and 14.8.
TEST(Correlation, PearsonIsThatOfDeviations) {
  const std::vector<double> x = {1, 2, 3, 4, 5}, y = {2, 1, 4, 3, 6};
  EXPECT_NEAR(pearson(x, y), 10 / std::sqrt(10 * 14.8), 1e-15);
}

TEST(Correlation, SpearmanSeesTheOrderAlone) {
  const std::vector<double> x = {1, 2, 3, 4}, bent = {1, 10, 100, 1e6};
  EXPECT_DOUBLE_EQ(spearman(x, bent), 1);
  EXPECT_LT(pearson(x, bent), 0.9);
}

// Ranks (0, 1.5, 1.5, 3) beside (0, 1, 2, 3): Σ = 4.5 over sqrt(4.5 * 5).
TEST(Correlation, EqualNumbersShareTheirRank) {
  const std::vector<double> tied = {1, 2, 2, 9}, x = {1, 2, 3, 4};
  EXPECT_NEAR(spearman(tied, x), 4.5 / std::sqrt(4.5 * 5), 1e-15);
}

TEST(Correlation, OfAConstantThereIsNone) {
  EXPECT_TRUE(std::isnan(pearson(std::vector<double>{1, 1}, std::vector<double>{1, 2})));
}

}  // namespace
}  // namespace coppice
