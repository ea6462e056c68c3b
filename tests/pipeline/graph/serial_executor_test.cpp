#include "pipeline/graph/serial_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <set>
#include <stdexcept>

namespace coppice {
namespace {

using ::testing::ElementsAre;

TEST(SerialExecutor, RunsTasksInTheOrderTheyCame) {
  std::vector<int> order;
  {
    SerialExecutor executor("test");
    for (int i = 0; i < 4; ++i) executor.post([&order, i] { order.push_back(i); });
  }
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 3));
}

TEST(SerialExecutor, UsesOneThreadForAllTasks) {
  std::set<std::thread::id> ids;
  {
    SerialExecutor executor("test");
    for (int i = 0; i < 8; ++i) executor.post([&ids] { ids.insert(std::this_thread::get_id()); });
  }
  EXPECT_EQ(ids.size(), 1u);
  EXPECT_EQ(ids.count(std::this_thread::get_id()), 0u);
}

TEST(SerialExecutor, RunRethrowsWhatTheTaskThrows) {
  SerialExecutor executor("test");
  EXPECT_THROW(executor.run([] { throw std::runtime_error("no"); }), std::runtime_error);
  bool runs_on = false;
  executor.run([&runs_on] { runs_on = true; });
  EXPECT_TRUE(runs_on);
}

TEST(SerialExecutor, DestructorRunsWhatWasPosted) {
  std::latch gate(1);
  std::atomic<int> done = 0;
  {
    SerialExecutor executor("test");
    executor.post([&gate] { gate.wait(); });
    for (int i = 0; i < 3; ++i) executor.post([&done] { ++done; });
    gate.count_down();
  }
  EXPECT_EQ(done, 3);
}

TEST(SerialExecutor, ReleasesWhatATaskHoldsBeforeTheNextRuns) {
  auto held = std::make_shared<int>(1);
  const std::weak_ptr<int> watch = held;
  SerialExecutor executor("test");
  executor.post([held = std::move(held)] {});
  bool gone = false;
  executor.run([&] { gone = watch.expired(); });
  EXPECT_TRUE(gone);
}

}  // namespace
}  // namespace coppice
