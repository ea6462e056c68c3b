#include "stages/seed.h"

#include <gtest/gtest.h>

#include <set>

namespace coppice {
namespace {

TEST(Seed, EveryPartOfItMatters) {
  const std::set<uint64_t> seeds = {seed_of(0, "a"), seed_of(1, "a"), seed_of(0, "b"),
                                    seed_of(0, "a", 1), seed_of(1ull << 40, "a")};
  EXPECT_EQ(seeds.size(), 5u);
  EXPECT_EQ(seed_of(7, "model.layers.3", 2), seed_of(7, "model.layers.3", 2));
}

}  // namespace
}  // namespace coppice
