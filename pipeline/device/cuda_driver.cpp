// The seam filled in with CUDA's runtime and libtorch's allocator. Without the CUDA toolkit only
// the refusal remains.
#include "pipeline/device/device.h"

#ifndef COPPICE_WITH_CUDA

namespace coppice {

std::unique_ptr<Device> make_cuda_device(int, const DeviceOptions&, std::string& why) {
  why = "this program was built without CUDA";
  return nullptr;
}

}  // namespace coppice

#else

#include <ATen/Context.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "configs/errors.h"  // ConfigError
#include "pipeline/device/gpu_device.h"

namespace coppice {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // else the next call that looks reports it again
  if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
  throw GpuError(fmt::format("CUDA: {}: {}", what, cudaGetErrorString(status)));
}

struct CudaStreams {
  c10::DeviceIndex device = 0;
  cudaStream_t upload = nullptr, download = nullptr;

  cudaStream_t of(GpuStream stream) const {
    switch (stream) {
      case GpuStream::kCompute:
        return c10::cuda::getCurrentCUDAStream(device).stream();
      case GpuStream::kUpload:
        return upload;
      case GpuStream::kDownload:
        return download;
    }
    return nullptr;
  }
};

class CudaEvent final : public GpuEvent {
 public:
  CudaEvent(const CudaStreams& streams, GpuStream stream) : streams_(streams) {
    // A thread that spins would take a core from the codecs.
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming | cudaEventBlockingSync),
          "create event");
    const cudaError_t recorded = cudaEventRecord(event_, streams_.of(stream));
    if (recorded != cudaSuccess) cudaEventDestroy(event_);
    check(recorded, "record event");
  }
  ~CudaEvent() override { cudaEventDestroy(event_); }
  CudaEvent(const CudaEvent&) = delete;
  CudaEvent& operator=(const CudaEvent&) = delete;

  void wait() const override { check(cudaEventSynchronize(event_), "wait for event"); }
  void hold(GpuStream stream) const override {
    check(cudaStreamWaitEvent(streams_.of(stream), event_, 0), "hold stream");
  }

 private:
  const CudaStreams& streams_;
  cudaEvent_t event_ = nullptr;
};

class CudaDriver final : public GpuDriver {
 public:
  explicit CudaDriver(int index) : index_(index), streams_{c10::DeviceIndex(index)} {
    use_on_this_thread();
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, index_), "device properties");
    int runtime = 0;
    check(cudaRuntimeGetVersion(&runtime), "runtime version");
    facts_ = {fmt::format("cuda:{}", index_), properties.name,
              fmt::format("cuda {} sm={}{} runtime={}", properties.name, properties.major,
                          properties.minor, runtime),
              properties.totalGlobalMem};
    for (cudaStream_t* stream : {&streams_.upload, &streams_.download}) {
      check(cudaStreamCreateWithFlags(stream, cudaStreamNonBlocking), "create copy stream");
    }
  }
  ~CudaDriver() override {
    cudaSetDevice(index_);
    cudaStreamDestroy(streams_.upload);
    cudaStreamDestroy(streams_.download);
  }
  CudaDriver(const CudaDriver&) = delete;
  CudaDriver& operator=(const CudaDriver&) = delete;

  const GpuFacts& facts() const override { return facts_; }
  at::Device where() const override { return {at::kCUDA, c10::DeviceIndex(index_)}; }
  void use_on_this_thread() const override { check(cudaSetDevice(index_), "set device"); }

  uint64_t free_bytes() const override {
    size_t free = 0, total = 0;
    check(cudaMemGetInfo(&free, &total), "ask for free memory");
    return free;
  }
  void limit_allocator(uint64_t bytes) override {
    const double share = double(bytes) / double(facts_.total_bytes);
    c10::cuda::CUDACachingAllocator::setMemoryFraction(std::min(share, 1.0),
                                                       c10::DeviceIndex(index_));
  }

  uint64_t allocator_peak_bytes() const override {
    constexpr auto kAll = size_t(c10::CachingAllocator::StatType::AGGREGATE);
    const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(c10::DeviceIndex(index_));
    return uint64_t(stats.reserved_bytes[kAll].peak);
  }

  void forget_allocator_peak() override {
    c10::cuda::CUDACachingAllocator::resetPeakStats(c10::DeviceIndex(index_));
  }
  void trim_allocator() override { c10::cuda::CUDACachingAllocator::emptyCache(); }

  std::byte* allocate(uint64_t bytes) override {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocate slot");
    return static_cast<std::byte*>(memory);
  }
  void free(std::byte* memory) noexcept override { cudaFree(memory); }
  void pin(std::span<std::byte> memory) override {
    check(cudaHostRegister(memory.data(), memory.size(), cudaHostRegisterPortable), "pin memory");
  }
  void unpin(std::span<std::byte> memory) noexcept override { cudaHostUnregister(memory.data()); }

  void copy(GpuStream stream, std::byte* to, const std::byte* from, uint64_t bytes) override {
    check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, streams_.of(stream)), "copy");
  }
  std::unique_ptr<GpuEvent> record(GpuStream stream) override {
    return std::make_unique<CudaEvent>(streams_, stream);
  }

 private:
  int index_;
  CudaStreams streams_;
  GpuFacts facts_;
};

GpuPresence presence() {
  GpuPresence found;
  if (cudaDriverGetVersion(&found.driver_version) != cudaSuccess) found.driver_version = 0;
  check(cudaRuntimeGetVersion(&found.runtime_version), "runtime version");
  if (cudaGetDeviceCount(&found.num_gpus) != cudaSuccess) {
    cudaGetLastError();
    found.num_gpus = 0;
  }
  return found;
}

// The same run gives the same bytes. Must come before cuBLAS is first used: it reads its
// workspace's size then.
void compute_deterministically() {
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::Context& context = at::globalContext();
  // Not only warned of: the backward passes of attention are deterministic only then. cuDNN's is
  // not at all.
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setSDPUseCuDNN(false);
  context.setDeterministicFillUninitializedMemory(false);  // every one of ours is written first
  context.setBenchmarkCuDNN(false);
  context.setFloat32MatmulPrecision("highest");
  context.setAllowBF16ReductionCuBLAS(/*allow_reduced_precision=*/false);
}

}  // namespace

// libtorch's CUDA kernels come with some 235 MiB of resident libraries, so they are loaded only
// where there is a GPU; loading registers them with the libtorch that is there. Must come before
// anything asks libtorch for CUDA.
std::unique_ptr<Device> make_cuda_device(int index, const DeviceOptions& options,
                                         std::string& why) {
  why = why_not(presence(), index);
  if (!why.empty()) return nullptr;
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    // There is a GPU: computing elsewhere without a word would cost somebody a night.
    throw ConfigError(
        fmt::format("resources.device: cuda:{}: {}; use cpu to do without it", index, dlerror()));
  }
  compute_deterministically();
  at::globalContext().lazyInitDevice(at::kCUDA);  // its allocator takes limits only then
  return std::make_unique<GpuDevice>(std::make_unique<CudaDriver>(index), options);
}

}  // namespace coppice

#endif
