// One GPU: slots in its memory, staging in pinned host memory, a stream for each way beside the one
// that computes.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "pipeline/device/device.h"
#include "pipeline/device/gpu_driver.h"
#include "storage/io/aligned_buffer.h"

namespace coppice {

class GpuDevice final : public Device {
 public:
  /// Throws BudgetError where `options.vram_budget_bytes` is more than the GPU has.
  GpuDevice(std::unique_ptr<GpuDriver> driver, const DeviceOptions& options);
  ~GpuDevice() override;

  std::string name() const override { return driver_->facts().name; }
  at::Device where() const override { return driver_->where(); }
  bool is_host() const override { return false; }
  at::ScalarType compute_dtype(at::ScalarType stored) const override;
  std::string description() const override { return driver_->facts().model; }
  std::string numerics() const override { return driver_->facts().numerics; }
  uint64_t free_bytes() const override;
  uint64_t peak_bytes() const override { return slot_bytes_ + driver_->allocator_peak_bytes(); }

  std::span<std::byte> allocate_slot(uint64_t bytes) override;
  std::span<std::byte> allocate_staging(uint64_t bytes) override;
  HostMemory host_memory(uint64_t bytes) override;
  void forget_work() override;
  ChunkLayout chunk_layout() const override { return ChunkLayout::kPlanes; }
  void load(const at::Tensor& host, const at::Tensor& tensor) override;
  CopyWait computed() const override;
  void upload(std::vector<StagedCopy> copies, CopyCompletion done) override;
  void download(const at::Tensor& tensor, std::span<std::byte> staging) override;
  CopyWait downloads() override;
  void finish() const override;
  at::Tensor view(std::span<std::byte> bytes, at::IntArrayRef shape,
                  at::ScalarType dtype) const override;

 private:
  /// Host memory that went back, by its bytes. Who gives some back last may do so behind the
  /// device.
  struct Unused {
    std::mutex mutex;
    std::map<uint64_t, std::vector<std::span<std::byte>>> spans;

    std::span<std::byte> take(uint64_t bytes);  // empty: there is none
    void give(std::span<std::byte> span);
  };

  bool lies_in_slot(const at::Tensor& tensor) const;

  std::unique_ptr<GpuDriver> driver_;
  std::string requested_dtype_;
  uint64_t budget_;  // of the GPU's memory, the allocator's and the slots'; 0: all there is
  uint64_t slot_bytes_ = 0;
  std::vector<std::span<std::byte>> slots_;
  std::mutex staging_mutex_;
  std::vector<AlignedBuffer> staging_;
  std::shared_ptr<Unused> unused_ = std::make_shared<Unused>();
  std::vector<at::Tensor> leaving_;    // since the last call of downloads(); the device's thread
  SerialExecutor uploads_{"uploads"};  // gone before what it uses
};

}  // namespace coppice
