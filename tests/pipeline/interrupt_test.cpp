#include "pipeline/interrupt.h"

#include <gtest/gtest.h>

#include <csignal>

namespace coppice {
namespace {

TEST(InterruptGuard, ASignalIsARequestThatOutlivesIt) {
  {
    const InterruptGuard guard;
    EXPECT_FALSE(InterruptGuard::requested());
    std::raise(SIGTERM);
  }
  EXPECT_TRUE(InterruptGuard::requested());
}

TEST(InterruptGuard, TheNextOneForgetsItUnlessItIsToBeKept) {
  {
    const InterruptGuard guard;
    std::raise(SIGINT);
  }
  { const InterruptGuard kept(InterruptGuard::Earlier::kKeep); }
  EXPECT_TRUE(InterruptGuard::requested());
  const InterruptGuard forgets;
  EXPECT_FALSE(InterruptGuard::requested());
}

TEST(InterruptGuardDeathTest, ASecondSignalHasItsDefaultEffect) {
  EXPECT_EXIT(
      {
        const InterruptGuard guard;
        std::raise(SIGTERM);
        std::raise(SIGTERM);
      },
      ::testing::KilledBySignal(SIGTERM), "");
}

}  // namespace
}  // namespace coppice
