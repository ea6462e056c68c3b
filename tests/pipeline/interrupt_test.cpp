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

TEST(InterruptGuard, TheNextOneForgetsIt) {
  {
    const InterruptGuard guard;
    std::raise(SIGINT);
  }
  const InterruptGuard forgets;
  EXPECT_FALSE(InterruptGuard::requested());
}

TEST(InterruptGuard, AnInnerOneForgetsNothingAndLeavesTheOuterListening) {
  const InterruptGuard guard;
  { const InterruptGuard inner; }
  std::raise(SIGHUP);
  const InterruptGuard inner;
  EXPECT_TRUE(InterruptGuard::requested());
}

TEST(InterruptGuardDeathTest, ASecondSignalHasItsDefaultEffectInAnInnerOneToo) {
  EXPECT_EXIT(
      {
        const InterruptGuard guard;
        std::raise(SIGTERM);
        const InterruptGuard inner;
        std::raise(SIGTERM);
      },
      ::testing::KilledBySignal(SIGTERM), "");
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
