// A place that computes: its memory, its thread, how bytes get there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pipeline/graph/serial_executor.h"
#include "storage/cache/codec.h"  // ChunkLayout

namespace coppice {

struct DeviceOptions {
  std::string device = "auto";         // auto (a GPU where there is one), cpu, cuda:N; several: a,b
  std::string compute_dtype = "auto";  // auto, fp32, bf16
  int threads = 0;                 // inside an operation, CPU; 0: all cores this process may use
  uint64_t vram_budget_bytes = 0;  // of a GPU's own memory, slots included; 0: all there is
};

/// Called once, on any thread; `failure` is null on success. Must not throw and must not block.
using CopyCompletion = std::function<void(std::exception_ptr failure)>;

/// Staged bytes, and where in a slot they go.
struct StagedCopy {
  std::span<const std::byte> staged;
  std::byte* slot = nullptr;
};

/// Returns when copies are done. Any thread, once; throws GpuError where they failed.
using CopyWait = std::function<void()>;

/// Bytes of the host, of whatever content. They go back with the last reference, on any thread.
using HostMemory = std::shared_ptr<const std::span<std::byte>>;

/// Owns slots and staging memory, and the one thread that calls libtorch for this device.
class Device {
 public:
  virtual ~Device() = default;
  virtual std::string name() const = 0;  // "cpu", "cuda:0"
  virtual at::Device where() const = 0;
  /// Whether it computes in host memory: then slots are where reads land, and nothing is copied.
  virtual bool is_host() const = 0;
  /// Of products and activations for weights stored in `stored`. Chosen once, reported.
  virtual at::ScalarType compute_dtype(at::ScalarType stored) const = 0;
  /// What is computed with and why: "2 threads, AVX2, products in fp32 (no AMX or AVX512-BF16)".
  virtual std::string description() const = 0;
  /// What of this device changes bits: part of a run's fingerprint.
  virtual std::string numerics() const = 0;

  /// Of the device's own memory; 0 where it computes in host memory.
  virtual uint64_t free_bytes() const { return 0; }
  /// The most of it that slots and libtorch held; without what the driver itself takes.
  virtual uint64_t peak_bytes() const { return 0; }

  /// Memory that lives as long as the device. Throws std::bad_alloc.
  virtual std::span<std::byte> allocate_slot(uint64_t bytes) = 0;
  /// Host memory that the device copies from and to beside its work, as long-lived; empty where it
  /// computes in host memory. Throws std::bad_alloc.
  virtual std::span<std::byte> allocate_staging(uint64_t bytes) = 0;
  /// So many bytes for a while, staging where there is any; the device outlives them. Any thread.
  /// Throws std::bad_alloc.
  virtual HostMemory host_memory(uint64_t bytes) = 0;
  /// Gives back what work so far left in the device's memory, and forgets its peak: that was no
  /// part of what comes. Nothing where the host's memory is the device's.
  virtual void forget_work() {}
  /// How hidden states lie in host memory that the device copies from and to: as byte planes where
  /// it splits and joins them itself, and the codec need not.
  virtual ChunkLayout chunk_layout() const { return ChunkLayout::kElements; }
  /// Starts copying what was staged to its places in a slot, beside what is computed; any thread,
  /// returns at once. `done` is called when the bytes are there: a task posted then sees them.
  virtual void upload(std::vector<StagedCopy> copies, CopyCompletion done) = 0;
  /// Starts filling a tensor with the numbers of one of the host's, behind what is computed so far.
  /// Those stay as they are until what computed() returns now has been waited for. Device's thread.
  virtual void load(const at::Tensor& host, const at::Tensor& tensor) = 0;
  /// Waits for all that this thread has computed so far. Device's thread.
  virtual CopyWait computed() const {
    return [] {};
  }
  /// Starts copying a tensor of as many bytes to host memory, beside what is computed next: the
  /// tensor must not be written to any more. Device's thread.
  virtual void download(const at::Tensor& tensor, std::span<std::byte> host) = 0;
  /// Waits for all downloads since the last call. Device's thread; what is returned holds the
  /// tensors, and the device outlives it.
  virtual CopyWait downloads() {
    return [] {};
  }
  /// Returns when everything this thread has computed is done: before a slot that it reads is given
  /// back. Device's thread.
  virtual void finish() const {}
  /// A tensor over bytes of a slot, not owning them. Where their address does not suit the dtype
  /// (safetensors promises no alignment) the tensor is a copy.
  virtual at::Tensor view(std::span<std::byte> bytes, at::IntArrayRef shape,
                          at::ScalarType dtype) const = 0;

  SerialExecutor& executor() { return executor_; }

 protected:
  Device() : executor_("device") {}

 private:
  SerialExecutor executor_;
};

/// Where a command's devices come from.
using DeviceFactory =
    std::function<std::vector<std::unique_ptr<Device>>(const DeviceOptions& options)>;

/// The only branch between devices. Throws ConfigError for a device this machine does not have.
std::unique_ptr<Device> make_device(const DeviceOptions& options);

/// One for every name between commas; a CPU counts as often as it is named (each with `threads`).
/// Throws ConfigError for devices that would not compute the same bits, or a GPU named twice.
std::vector<std::unique_ptr<Device>> make_devices(const DeviceOptions& options);

/// A GPU by number, or null where there is none or the program was built without CUDA; `why` says
/// so.
std::unique_ptr<Device> make_cuda_device(int index, const DeviceOptions& options, std::string& why);
std::unique_ptr<Device> make_cpu_device(const DeviceOptions& options);

/// "BF16" ↔ at::kBFloat16. Throws std::invalid_argument for another word or type.
at::ScalarType scalar_type(const std::string& safetensors_dtype);

}  // namespace coppice
