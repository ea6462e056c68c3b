#include "storage/io/errands.h"

#include <gtest/gtest.h>

#include <atomic>
#include <semaphore>
#include <stdexcept>
#include <thread>
#include <vector>

namespace coppice {
namespace {

/// A thread that does errands until it is told to end.
class Doer {
 public:
  ~Doer() { end(); }
  Errands& errands() { return errands_; }
  std::thread::id id() const { return id_; }
  void end() {
    if (!thread_.joinable()) return;
    ending_ = true;
    woken_.release();
    thread_.join();
  }

 private:
  std::counting_semaphore<> woken_{0};
  std::atomic<bool> ending_ = false;
  Errands errands_{[this] { woken_.release(); }};
  std::thread thread_{[this] {
    while (!ending_) {
      woken_.acquire();
      errands_.do_waiting();
    }
    errands_.close();
  }};
  std::thread::id id_ = thread_.get_id();
};

TEST(Errands, RunOnTheDoingThreadBeforeTheAskingOneGoesOn) {
  Doer doer;
  std::thread::id ran_on;
  EXPECT_TRUE(doer.errands().run([&] { ran_on = std::this_thread::get_id(); }));
  EXPECT_EQ(ran_on, doer.id());
}

TEST(Errands, FailuresReachTheAskingThread) {
  Doer doer;
  EXPECT_THROW(doer.errands().run([] { throw std::length_error("full"); }), std::length_error);
}

TEST(Errands, NoneIsTakenOnceTheDoingThreadHasEnded) {
  Doer doer;
  doer.end();
  bool ran = false;
  EXPECT_FALSE(doer.errands().run([&] { ran = true; }));
  EXPECT_FALSE(ran);
}

TEST(Errands, ManyThreadsMayAskAtOnce) {
  Doer doer;
  int done = 0;  // touched by the doing thread alone
  std::vector<std::thread> threads;
  threads.reserve(4);
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 100; ++i) doer.errands().run([&] { ++done; });
    });
  }
  for (std::thread& thread : threads) thread.join();
  doer.end();
  EXPECT_EQ(done, 400);
}

}  // namespace
}  // namespace coppice
