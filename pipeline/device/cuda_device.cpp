// One GPU: slots in device memory, slabs in host memory registered with the driver, uploads on a
// stream of their own. Without the CUDA toolkit only the refusal remains.
#include "pipeline/device/device.h"

#ifndef COPPICE_WITH_CUDA

namespace coppice {

std::unique_ptr<Device> make_cuda_device(int, const DeviceOptions&, std::string& why) {
  why = "this program was built without CUDA";
  return nullptr;
}

}  // namespace coppice

#else

#include <ATen/ops/from_blob.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <new>

#include "configs/errors.h"  // ConfigError
#include "storage/io/aligned_buffer.h"

namespace coppice {
namespace {

void check(cudaError_t status, const char* what) {
  if (status == cudaErrorMemoryAllocation) throw std::bad_alloc();
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
  }
}

class CudaDevice final : public Device {
 public:
  CudaDevice(int index, const DeviceOptions& options)
      : index_(index), requested_(options.compute_dtype) {
    check(cudaSetDevice(index_), "set device");
    check(cudaStreamCreateWithFlags(&copies_, cudaStreamNonBlocking), "create copy stream");
    check(cudaGetDeviceProperties(&properties_, index_), "device properties");
    executor().run([this] { c10::cuda::set_device(static_cast<c10::DeviceIndex>(index_)); });
  }

  ~CudaDevice() override {
    cudaSetDevice(index_);
    cudaStreamSynchronize(copies_);
    for (std::byte* slot : slots_) cudaFree(slot);
    for (AlignedBuffer& slab : slabs_) cudaHostUnregister(slab.data());
    cudaStreamDestroy(copies_);
  }

  std::string name() const override { return "cuda:" + std::to_string(index_); }
  at::Device where() const override {
    return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(index_));
  }
  at::ScalarType compute_dtype(at::ScalarType stored) const override {
    if (requested_ == "fp32") return at::kFloat;
    if (requested_ == "bf16") return at::kBFloat16;
    return stored == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
  }
  std::string description() const override { return properties_.name; }
  std::string numerics() const override {
    return std::string("cuda ") + properties_.name + " sm=" + std::to_string(properties_.major) +
           std::to_string(properties_.minor);
  }

  uint64_t free_bytes() const override {
    size_t free = 0, total = 0;
    check(cudaSetDevice(index_), "set device");
    check(cudaMemGetInfo(&free, &total), "ask for free memory");
    return free;
  }

  std::span<std::byte> allocate_slot(uint64_t bytes) override {
    check(cudaSetDevice(index_), "set device");
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocate slot");
    slots_.push_back(static_cast<std::byte*>(memory));
    return {slots_.back(), bytes};
  }

  std::span<std::byte> allocate_slab(uint64_t bytes) override {
    AlignedBuffer& slab = slabs_.emplace_back(bytes);
    check(cudaHostRegister(slab.data(), bytes, cudaHostRegisterDefault), "register slab");
    return slab.span();
  }

  void upload(std::span<const std::byte> slab, std::byte* slot) override {
    check(cudaSetDevice(index_), "set device");
    check(cudaMemcpyAsync(slot, slab.data(), slab.size(), cudaMemcpyHostToDevice, copies_),
          "upload");
    check(cudaStreamSynchronize(copies_), "upload");
  }

  void finish() const override { c10::cuda::device_synchronize(); }

  at::Tensor view(std::span<std::byte> bytes, at::IntArrayRef shape,
                  at::ScalarType dtype) const override {
    const auto options = at::TensorOptions().dtype(dtype).device(where());
    if (reinterpret_cast<uintptr_t>(bytes.data()) % c10::elementSize(dtype) == 0) {
      return at::from_blob(bytes.data(), shape, options);
    }
    const auto raw = at::TensorOptions().dtype(at::kByte).device(where());
    return at::from_blob(bytes.data(), {int64_t(bytes.size())}, raw)
        .clone()
        .view(dtype)
        .view(shape);
  }

 private:
  int index_;
  std::string requested_;
  cudaStream_t copies_ = nullptr;
  cudaDeviceProp properties_{};
  std::vector<std::byte*> slots_;
  std::vector<AlignedBuffer> slabs_;
};

}  // namespace

// libtorch's CUDA kernels come with some 235 MiB of resident libraries, so they are loaded only
// where there is a GPU; loading registers them with the libtorch that is there. Must come before
// anything asks libtorch for CUDA.
std::unique_ptr<Device> make_cuda_device(int index, const DeviceOptions& options,
                                         std::string& why) {
  const int count = c10::cuda::device_count();
  if (index >= count) {
    why = "there are " + std::to_string(count) + " CUDA devices here";
    return nullptr;
  }
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    // There is a GPU: computing elsewhere without a word would cost somebody a night.
    throw ConfigError("resources.device: cuda:" + std::to_string(index) + ": " + dlerror() +
                      "; use cpu to do without it");
  }
  return std::make_unique<CudaDevice>(index, options);
}

}  // namespace coppice

#endif
