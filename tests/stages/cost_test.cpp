#include "stages/cost.h"

#include <gtest/gtest.h>

namespace coppice {
namespace {

TEST(Cost, WorkAndTrafficAddUp) {
  Cost cost{.product_flop = 1, .attention_flop = 4, .bytes_touched = 7, .bytes_moved = 20};
  cost += {.product_flop = 2, .attention_flop = 5, .bytes_touched = 8, .bytes_moved = 30};
  EXPECT_EQ(cost.product_flop, 3);
  EXPECT_EQ(cost.attention_flop, 9);
  EXPECT_EQ(cost.flop(), 12);
  EXPECT_EQ(cost.bytes_touched, 15);
  EXPECT_EQ(cost.bytes_moved, 50);
}

TEST(Cost, WhatIsKeptStaysBesideWhatComesLater) {
  Cost cost{.bytes_held = 300, .bytes_kept = 10};
  cost += {.bytes_held = 200, .bytes_kept = 20};
  EXPECT_EQ(cost.bytes_held, 300);
  EXPECT_EQ(cost.bytes_kept, 30);
}

TEST(Cost, MemoryIsThatOfTheLargest) {
  Cost cost{.bytes_held = 300};
  EXPECT_EQ((cost += {.bytes_held = 200}).bytes_held, 300);
  EXPECT_EQ((cost += {.bytes_held = 400}).bytes_held, 400);
}

}  // namespace
}  // namespace coppice
