// Order, bounds and completions, with the test in the place of the kernel.
#include "storage/io/read_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <thread>
#include <vector>

#include "storage/errors.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using testing::TempDir;

/// Batches of reads of given sizes; nothing is read, the test answers for the kernel.
class ReadQueueTest : public ::testing::Test {
 protected:
  ReadQueueTest() { write_file(directory_ / "file", "x"); }

  /// `name` appears in `completed_`, with '!' if the batch failed.
  void push(ReadQueue& queue, const std::string& name, const std::vector<size_t>& sizes,
            Urgency urgency = Urgency::kAhead) {
    ReadBatch batch;
    batch.urgency = urgency;
    for (const size_t bytes : sizes) {
      batch.reads.push_back({.file = &file(), .into = std::span(memory_).first(bytes)});
    }
    queue.push(std::move(batch), [this, name](ReadBatch, std::exception_ptr failure) {
      completed_.push_back(failure == nullptr ? name : name + "!");
    });
  }

  const ReadFile& file() {
    if (file_ == nullptr) file_ = std::make_unique<ReadFile>(directory_ / "file");
    return *file_;
  }

  TempDir directory_;
  std::unique_ptr<ReadFile> file_;
  std::vector<std::byte> memory_ = std::vector<std::byte>(1000);
  std::vector<std::string> completed_;
};

const std::exception_ptr kFailure = std::make_exception_ptr(std::runtime_error("a fault"));

TEST_F(ReadQueueTest, ReadsOfEarlierBatchesComeFirst) {
  ReadQueue queue(1000);
  push(queue, "a", {1, 2});
  push(queue, "b", {3});
  std::vector<size_t> order;
  std::vector<ReadQueue::Ticket> tickets;
  while (auto ticket = queue.try_take()) {
    order.push_back(ticket->read->into.size());
    tickets.push_back(std::move(*ticket));
  }
  EXPECT_THAT(order, ElementsAre(1, 2, 3));
  for (ReadQueue::Ticket& ticket : tickets) queue.finish(std::move(ticket), nullptr);
}

TEST_F(ReadQueueTest, UrgentBatchesOvertakeAllOthersButNotEachOther) {
  ReadQueue queue(1000);
  push(queue, "ahead", {1, 2, 3});
  std::vector<ReadQueue::Ticket> tickets;
  tickets.push_back(std::move(*queue.try_take()));  // one is on its way already
  push(queue, "also ahead", {4});
  push(queue, "now", {5, 6}, Urgency::kNow);
  push(queue, "and now", {7}, Urgency::kNow);
  std::vector<size_t> order;
  while (auto ticket = queue.try_take()) {
    order.push_back(ticket->read->into.size());
    tickets.push_back(std::move(*ticket));
  }
  EXPECT_THAT(order, ElementsAre(5, 6, 7, 2, 3, 4));
  for (ReadQueue::Ticket& ticket : tickets) queue.finish(std::move(ticket), nullptr);
  EXPECT_THAT(completed_, ElementsAre("now", "and now", "ahead", "also ahead"));
}

TEST_F(ReadQueueTest, BytesInFlightStayWithinTheBound) {
  ReadQueue queue(100);
  push(queue, "a", {60, 40, 1});
  auto first = queue.try_take();
  auto second = queue.try_take();
  EXPECT_FALSE(queue.try_take().has_value());
  queue.finish(std::move(*second), nullptr);
  auto third = queue.try_take();
  ASSERT_TRUE(third.has_value());
  queue.finish(std::move(*third), nullptr);
  EXPECT_THAT(completed_, IsEmpty());
  queue.finish(std::move(*first), nullptr);
  EXPECT_THAT(completed_, ElementsAre("a"));
}

TEST_F(ReadQueueTest, AReadLargerThanTheBoundGoesAlone) {
  ReadQueue queue(100);
  push(queue, "a", {10, 500, 10});
  auto small = queue.try_take();
  EXPECT_FALSE(queue.try_take().has_value());
  queue.finish(std::move(*small), nullptr);
  auto large = queue.try_take();
  ASSERT_TRUE(large.has_value());
  EXPECT_FALSE(queue.try_take().has_value());
  queue.finish(std::move(*large), nullptr);
  queue.finish(std::move(*queue.try_take()), nullptr);
  EXPECT_THAT(completed_, ElementsAre("a"));
}

TEST_F(ReadQueueTest, AFailedBatchStartsNoFurtherReadAndCompletesOnceItsLastIsReaped) {
  ReadQueue queue(1000);
  push(queue, "a", {1, 2, 3});
  push(queue, "b", {4});
  auto first = queue.try_take();
  auto second = queue.try_take();
  queue.finish(std::move(*first), kFailure);
  EXPECT_THAT(completed_, IsEmpty());
  auto next = queue.try_take();
  EXPECT_EQ(next->read->into.size(), 4u);
  queue.finish(std::move(*second), kFailure);
  EXPECT_THAT(completed_, ElementsAre("a!"));
  queue.finish(std::move(*next), nullptr);
  EXPECT_THAT(completed_, ElementsAre("a!", "b"));
}

TEST_F(ReadQueueTest, ACompletedBatchStillInLineIsPassedOver) {
  ReadQueue queue(1000);
  push(queue, "a", {1, 2});
  push(queue, "b", {3});
  queue.finish(std::move(*queue.try_take()), kFailure);
  EXPECT_THAT(completed_, ElementsAre("a!"));  // its second read never started
  auto next = queue.take();
  EXPECT_EQ(next->read->into.size(), 3u);
  queue.finish(std::move(*next), nullptr);
  EXPECT_THAT(completed_, ElementsAre("a!", "b"));
}

TEST_F(ReadQueueTest, ABatchWithoutReadsCompletes) {
  ReadQueue queue(1000);
  push(queue, "a", {});
  EXPECT_THAT(completed_, IsEmpty());  // on an engine's thread, not the caller's
  EXPECT_FALSE(queue.try_take().has_value());
  EXPECT_THAT(completed_, ElementsAre("a"));
}

TEST_F(ReadQueueTest, ClosingFailsWhatHasNotStartedAndLetsTheRestEnd) {
  ReadQueue queue(1000);
  push(queue, "running", {1});
  push(queue, "half started", {2, 3});
  push(queue, "waiting", {4});
  auto running = queue.try_take();
  auto half = queue.try_take();
  queue.close();
  EXPECT_FALSE(queue.drained());
  EXPECT_FALSE(queue.take().has_value());
  EXPECT_TRUE(queue.drained());
  EXPECT_THAT(completed_, ElementsAre("waiting!"));
  queue.finish(std::move(*running), nullptr);
  queue.finish(std::move(*half), nullptr);
  EXPECT_THAT(completed_, ElementsAre("waiting!", "running", "half started!"));
}

TEST_F(ReadQueueTest, ABatchPushedByACompletionAfterClosingFailsToo) {
  ReadQueue queue(1000);
  ReadBatch batch{.memory = nullptr, .reads = {{.file = &file(), .into = memory_}}};
  queue.push(batch, [&](ReadBatch, std::exception_ptr) { push(queue, "second", {1}); });
  queue.close();
  EXPECT_FALSE(queue.take().has_value());
  EXPECT_THAT(completed_, ElementsAre("second!"));
}

TEST_F(ReadQueueTest, TakeWaitsUntilBytesComeBack) {
  ReadQueue queue(10);
  push(queue, "a", {10, 10});
  auto first = queue.take();
  std::thread other([&] { queue.finish(std::move(*queue.take()), nullptr); });
  queue.finish(std::move(*first), nullptr);
  other.join();
  EXPECT_THAT(completed_, ElementsAre("a"));
}

}  // namespace
}  // namespace coppice
