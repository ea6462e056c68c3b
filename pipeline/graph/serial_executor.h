// One long-lived thread that runs tasks in the order they come.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace coppice {

/// libtorch is called from one such thread per device (libgomp keeps a team per calling thread;
/// grad mode and streams are thread-local), HDF5 from another, shards are stored by a third.
class SerialExecutor {
 public:
  explicit SerialExecutor(std::string thread_name);
  ~SerialExecutor();  // runs what was posted, then joins
  SerialExecutor(const SerialExecutor&) = delete;
  SerialExecutor& operator=(const SerialExecutor&) = delete;

  /// Any thread; returns at once. The task must not throw.
  void post(std::function<void()> task);

  /// Posts and waits; rethrows what the task throws. Not from the executor's own thread.
  void run(const std::function<void()>& task);

  /// Seconds without a task, from the start of the first task to the end of the latest.
  double idle_seconds() const;

 private:
  void loop();

  std::string name_;
  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> tasks_;
  bool stopping_ = false;
  double idle_seconds_ = 0;
  std::thread thread_;  // last: starts when everything else stands
};

}  // namespace coppice
