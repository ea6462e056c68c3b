// What a GPU's driver does for one GPU: the seam below GpuDevice, which has all that can be tested
// without one.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

namespace coppice {

/// What the GPU or its driver refused, other than memory: mostly that the GPU is lost. What was
/// finished before is on disk.
class GpuError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Whether it is one of those, or what libtorch throws for them.
bool is_gpu_error(const std::exception& error);

/// Work of one stream is done in the order in which it came, beside that of the others.
enum class GpuStream {
  kCompute,   // libtorch's, of the thread that asks
  kUpload,    // host memory to the GPU's
  kDownload,  // and back
};

/// What was started on a stream before a moment.
class GpuEvent {
 public:
  virtual ~GpuEvent() = default;
  /// Returns when it is done; the thread sleeps. Throws GpuError.
  virtual void wait() const = 0;
  /// What is started on `stream` from now on is begun when it is done. Returns at once.
  virtual void hold(GpuStream stream) const = 0;
};

struct GpuFacts {
  std::string name;      // "cuda:0"
  std::string model;     // "NVIDIA H200"
  std::string numerics;  // what of it changes bits: architecture, runtime and libtorch versions
  uint64_t total_bytes = 0;
};

/// Any thread, once it has called use_on_this_thread(). Throws std::bad_alloc where memory is
/// refused, GpuError for anything else.
class GpuDriver {
 public:
  virtual ~GpuDriver() = default;
  virtual const GpuFacts& facts() const = 0;
  virtual at::Device where() const = 0;
  virtual void use_on_this_thread() const = 0;

  virtual uint64_t free_bytes() const = 0;
  /// What libtorch's caching allocator may hold from now on.
  virtual void limit_allocator(uint64_t bytes) = 0;
  virtual uint64_t allocator_peak_bytes() const = 0;  // the most it has held
  virtual void forget_allocator_peak() = 0;
  /// Gives back what libtorch's allocator holds and nobody uses.
  virtual void trim_allocator() = 0;

  virtual std::byte* allocate(uint64_t bytes) = 0;
  virtual void free(std::byte* memory) noexcept = 0;
  /// Keeps pages of host memory in place, so that every GPU copies from and to them by itself.
  virtual void pin(std::span<std::byte> memory) = 0;
  virtual void unpin(std::span<std::byte> memory) noexcept = 0;

  /// Starts a copy on the stream, returns at once. Both ends stay until an event says it is done.
  virtual void copy(GpuStream stream, std::byte* to, const std::byte* from, uint64_t bytes) = 0;
  virtual std::unique_ptr<GpuEvent> record(GpuStream stream) = 0;
};

/// What the driver says of a machine before any GPU is used.
struct GpuPresence {
  int driver_version = 0;   // of the newest CUDA that it runs, 12040 for 12.4; 0: there is none
  int runtime_version = 0;  // of the CUDA that the program was built with
  int num_gpus = 0;
};

/// Why there is no GPU number `index`, or nothing where there is one.
/// Throws ConfigError where there are GPUs, but the driver is older than the program's CUDA:
/// computing elsewhere without a word would cost somebody a night.
std::string why_not(const GpuPresence& presence, int index);

}  // namespace coppice
