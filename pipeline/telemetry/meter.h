// Where the time and the bytes of a run went, counted by whoever spends them.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace coppice {

class Trace;

/// Seconds and bytes as atomics; any thread.
class Meter {
 public:
  void add_seconds(double seconds) { nanoseconds_ += int64_t(seconds * 1e9); }
  double seconds() const { return double(nanoseconds_) * 1e-9; }
  void add_bytes(uint64_t bytes) { bytes_ += bytes; }
  uint64_t bytes() const { return bytes_; }

 private:
  std::atomic<int64_t> nanoseconds_ = 0;
  std::atomic<uint64_t> bytes_ = 0;
};

/// Adds the time from its construction to its destruction.
class Stopwatch {
 public:
  explicit Stopwatch(Meter& meter) : meter_(meter), start_(std::chrono::steady_clock::now()) {}
  ~Stopwatch() { meter_.add_seconds(elapsed()); }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  double elapsed() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  Meter& meter_;
  std::chrono::steady_clock::time_point start_;
};

/// The meters of one run, and its timeline.
struct RunMeters {
  Meter reads;        // of weights and cache, bytes and time per batch (overlapping)
  Meter writes;       // of shards and cache
  Meter device_busy;  // tasks on the device's thread
  Meter waits;        // of the device's thread inside its tasks, for activations
  Meter encode;       // of the codec's threads, bytes as they are undone
  Meter decode;
  Meter cache_raw;  // bytes only: activations before and after compression
  Meter cache_stored;
  Trace* trace = nullptr;  // null: not wanted
};

}  // namespace coppice
