#include "pipeline/graph/serial_executor.h"

#include <pthread.h>

#include <future>

namespace coppice {

SerialExecutor::SerialExecutor(std::string thread_name)
    : name_(std::move(thread_name)), thread_([this] { loop(); }) {}

SerialExecutor::~SerialExecutor() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_one();
  thread_.join();
}

void SerialExecutor::post(std::function<void()> task) {
  {
    std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  wake_.notify_one();
}

void SerialExecutor::run(const std::function<void()>& task) {
  std::packaged_task<void()> packaged(task);
  std::future<void> done = packaged.get_future();
  post([&packaged] { packaged(); });
  done.get();
}

double SerialExecutor::idle_seconds() const {
  std::lock_guard lock(mutex_);
  return idle_seconds_;
}

void SerialExecutor::loop() {
  pthread_setname_np(pthread_self(), name_.substr(0, 15).c_str());
  using Clock = std::chrono::steady_clock;
  bool had_a_task = false;
  Clock::time_point idle_since;
  std::unique_lock lock(mutex_);
  for (;;) {
    wake_.wait(lock, [this] { return stopping_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    if (had_a_task) {
      idle_seconds_ += std::chrono::duration<double>(Clock::now() - idle_since).count();
    }
    {
      const std::function<void()> task = std::move(tasks_.front());
      tasks_.pop_front();
      lock.unlock();
      task();
    }  // what the task captured is released before the next is taken
    lock.lock();
    had_a_task = true;
    idle_since = Clock::now();
  }
}

}  // namespace coppice
