// A GPU played on the host: its memory is host memory, and nothing is done before somebody waits.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "pipeline/device/gpu_driver.h"

namespace coppice::testing {

/// Outlives its drivers; what a test looks at. Any thread.
class FakeGpu {
 public:
  uint64_t total_bytes = 1 << 20;
  uint64_t allocator_peak = 0;
  int num_trims = 0;  // of the allocator
  bool refuses_pins = false;
  at::Device where =
      at::kCPU;  // its tensors lie; that of a played backend does not mix with others

  /// From now on everything fails but what gives back.
  void lose();
  /// So after as many calls that could fail; 0: never.
  void lose_after(int calls);
  /// What a kernel would do: on the compute stream, when somebody waits for it.
  void compute(std::function<void()> kernel);
  /// Works of a stream that nobody waited for.
  size_t num_pending(GpuStream stream);

  uint64_t allocated_bytes() const { return allocated_bytes_; }
  uint64_t allocator_limit() const { return allocator_limit_; }
  size_t num_pinned() const { return pinned_.size(); }
  /// What no driver would have forgiven: calls of threads without a GPU, memory given back twice.
  const std::vector<std::string>& misuses() const { return misuses_; }

 private:
  friend class FakeDriver;
  friend class FakeEvent;

  void check(const char* what);
  void run_until(GpuStream stream, size_t count);

  std::recursive_mutex mutex_;  // of all below: work of one stream may wait for another's
  struct Stream {
    std::vector<std::function<void()>> works;
    size_t num_done = 0;
  };
  std::map<GpuStream, Stream> streams_;
  std::map<std::byte*, std::vector<std::byte>> memory_;
  std::set<std::byte*> pinned_;
  std::set<std::thread::id> threads_;
  std::vector<std::string> misuses_;
  uint64_t allocated_bytes_ = 0, allocator_limit_ = 0;
  int calls_left_ = 0;
  bool is_lost_ = false;
};

std::unique_ptr<GpuDriver> make_fake_driver(FakeGpu& gpu);

}  // namespace coppice::testing
