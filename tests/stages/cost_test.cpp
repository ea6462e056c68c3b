#include "stages/cost.h"

#include <gtest/gtest.h>

namespace coppice {
namespace {

TEST(Cost, WorkAndTrafficAddUp) {
  Cost cost{.flop = 1, .bytes_moved = 20, .bytes_held = 300};
  cost += {.flop = 2, .bytes_moved = 30, .bytes_held = 0};
  EXPECT_EQ(cost.flop, 3);
  EXPECT_EQ(cost.bytes_moved, 50);
}

TEST(Cost, MemoryIsThatOfTheLargest) {
  Cost cost{.bytes_held = 300};
  EXPECT_EQ((cost += {.bytes_held = 200}).bytes_held, 300);
  EXPECT_EQ((cost += {.bytes_held = 400}).bytes_held, 400);
}

}  // namespace
}  // namespace coppice
