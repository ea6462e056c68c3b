// The CPU: slots are host memory, so reads land where they are used and nothing is uploaded.
#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <sched.h>

#include <cstring>
#include <memory>
#include <vector>

#include "configs/errors.h"  // ConfigError
#include "pipeline/device/device.h"
#include "storage/io/aligned_buffer.h"

namespace coppice {
namespace {

int cores_of_this_process() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) != 0) return 1;
  return CPU_COUNT(&set);
}

// Only where the processor multiplies bf16 itself: emulated products are ten times slower than
// fp32.
bool multiplies_bf16() {
  const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto has = [&](const char* name) {
    const auto found = capabilities.find(name);
    return found != capabilities.end() && found->second.isBool() && found->second.toBool();
  };
  return has("amx_bf16") || has("avx512_bf16");
}

class CpuDevice final : public Device {
 public:
  explicit CpuDevice(const DeviceOptions& options)
      : requested_(options.compute_dtype),
        threads_(options.threads > 0 ? options.threads : cores_of_this_process()),
        has_bf16_(multiplies_bf16()) {
    executor().run([this] { at::set_num_threads(threads_); });
  }

  std::string name() const override { return "cpu"; }
  at::Device where() const override { return at::kCPU; }
  bool is_host() const override { return true; }

  at::ScalarType compute_dtype(at::ScalarType stored) const override {
    if (requested_ == "fp32") return at::kFloat;
    if (requested_ == "bf16") return at::kBFloat16;
    return stored == at::kBFloat16 && has_bf16_ ? at::kBFloat16 : at::kFloat;
  }

  std::string description() const override {
    return std::to_string(threads_) + " threads, " + at::get_cpu_capability() +
           (has_bf16_ ? ", bf16 products by the processor"
                      : ", products in fp32 (no AMX or AVX512-BF16)");
  }

  std::string numerics() const override {
    return "cpu threads=" + std::to_string(threads_) + " isa=" + at::get_cpu_capability() +
           (has_bf16_ ? "+bf16" : "");
  }

  std::span<std::byte> allocate_slot(uint64_t bytes) override {
    return slots_.emplace_back(bytes).span();
  }
  std::span<std::byte> allocate_staging(uint64_t) override { return {}; }
  HostMemory host_memory(uint64_t bytes) override {
    struct Owned {
      explicit Owned(uint64_t size)
          : memory(std::make_unique_for_overwrite<std::byte[]>(size)), span(memory.get(), size) {}
      std::unique_ptr<std::byte[]> memory;
      std::span<std::byte> span;
    };
    const auto owned = std::make_shared<Owned>(bytes);
    return {owned, &owned->span};
  }
  void load(const at::Tensor& host, const at::Tensor& tensor) override { tensor.copy_(host); }
  void upload(std::vector<StagedCopy>, CopyCompletion done) override {
    done(nullptr);  // reads landed in the slot
  }
  void download(const at::Tensor& tensor, std::span<std::byte> host) override {
    if (tensor.const_data_ptr() == host.data()) return;  // it was made there
    std::memcpy(host.data(), tensor.contiguous().const_data_ptr(), host.size());
  }

  at::Tensor view(std::span<std::byte> bytes, at::IntArrayRef shape,
                  at::ScalarType dtype) const override {
    const at::TensorOptions options = at::TensorOptions().dtype(dtype);
    if (reinterpret_cast<uintptr_t>(bytes.data()) % c10::elementSize(dtype) == 0) {
      return at::from_blob(bytes.data(), shape, options);
    }
    at::Tensor copy = at::empty(shape, options);
    std::memcpy(copy.data_ptr(), bytes.data(), bytes.size());
    return copy;
  }

 private:
  std::string requested_;
  int threads_;
  bool has_bf16_;
  std::vector<AlignedBuffer> slots_;
};

}  // namespace

std::unique_ptr<Device> make_cpu_device(const DeviceOptions& options) {
  return std::make_unique<CpuDevice>(options);
}

}  // namespace coppice
