#include "pipeline/plan/stage_time.h"

#include <gtest/gtest.h>

#include "stages/stage_table.h"
#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

const Rates kRates{1e9, 2e9, 4e9, 8e9, 16e9};

TEST(StageTime, IsTheSumOfEachKindOfWorkByItsRate) {
  StageWork work;
  work.cost.product_flop = 7e9;
  work.attention_products = 3e9;
  work.cost.attention_flop = 4e9;
  work.cost.bytes_touched = 16e9;
  work.cost.weights_selected = 8e9;
  const auto shares = time_shares(work, kRates);
  ASSERT_EQ(shares.size(), 4U);
  EXPECT_DOUBLE_EQ(shares[0].seconds, 3 + 2);
  EXPECT_DOUBLE_EQ(shares[1].seconds, 1);
  EXPECT_DOUBLE_EQ(shares[2].seconds, 2);
  EXPECT_DOUBLE_EQ(shares[3].seconds, 0.5);
  EXPECT_DOUBLE_EQ(modelled_seconds(work, kRates), 8.5);
}

TEST(StageTime, WindowsOfABlockAddUpAndTellTheirHalves) {
  const Architecture architecture = testing::tiny_llama();
  const SpanShape shape{architecture, {0, 2}, 8, 16, 4};
  const auto forward = forward_stage(PruneOptions{}, ReconstructOptions{});
  const StageWork whole = work_of(*forward, {{0, 2}}, shape);
  const StageWork halves = work_of(*forward, {{0, 1}, {1, 2}}, shape);
  EXPECT_DOUBLE_EQ(whole.cost.product_flop, halves.cost.product_flop);
  EXPECT_DOUBLE_EQ(whole.attention_products, halves.attention_products);
  EXPECT_GT(whole.attention_products, 0);
  EXPECT_LT(whole.attention_products, whole.cost.product_flop);
}

TEST(StageTime, TwiceTheWorkHoldsNoMoreMemory) {
  const Architecture architecture = testing::tiny_llama();
  const auto forward = forward_stage(PruneOptions{}, ReconstructOptions{});
  const StageWork once = work_of(*forward, {{0, 2}}, {architecture, {0, 2}, 8, 16, 4});
  const StageWork twice = 2 * once;
  EXPECT_DOUBLE_EQ(modelled_seconds(twice, kRates), 2 * modelled_seconds(once, kRates));
  EXPECT_DOUBLE_EQ(twice.cost.bytes_held, once.cost.bytes_held);
}

}  // namespace
}  // namespace coppice
