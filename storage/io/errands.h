// Work that must be done on one thread, asked for by others.
#pragma once

#include <functional>
#include <future>
#include <mutex>
#include <utility>
#include <vector>

namespace coppice {

/// The thread that does the errands looks for them when it is woken; nobody else may run them.
class Errands {
 public:
  /// `wake` makes the doing thread look; it is called under a lock and never after close().
  explicit Errands(std::function<void()> wake) : wake_(std::move(wake)) {}

  /// Any thread but the doing one. Returns once `errand` has run, and throws what it threw; false
  /// if the doing thread has ended, then it never runs.
  bool run(std::function<void()> errand) {
    std::packaged_task<void()> task(std::move(errand));
    std::future<void> done = task.get_future();
    {
      const std::lock_guard lock(mutex_);
      if (closed_) return false;
      waiting_.push_back(std::move(task));
      wake_();
    }
    done.get();
    return true;
  }

  /// The doing thread: does what waits, in order.
  void do_waiting() {
    std::vector<std::packaged_task<void()>> taken;
    {
      const std::lock_guard lock(mutex_);
      taken.swap(waiting_);
    }
    for (auto& task : taken) task();
  }

  /// The doing thread, before it ends: none is taken any more, those that wait are done.
  void close() {
    {
      const std::lock_guard lock(mutex_);
      closed_ = true;
    }
    do_waiting();
  }

 private:
  std::function<void()> wake_;
  std::mutex mutex_;
  std::vector<std::packaged_task<void()>> waiting_;
  bool closed_ = false;
};

}  // namespace coppice
