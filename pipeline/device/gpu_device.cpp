#include "pipeline/device/gpu_device.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/Exception.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "configs/errors.h"   // ConfigError
#include "pipeline/errors.h"  // BudgetError

namespace coppice {
namespace {

std::string cuda_version(int version) {
  return fmt::format("{}.{}", version / 1000, version % 1000 / 10);
}

}  // namespace

bool is_gpu_error(const std::exception& error) {
  if (dynamic_cast<const GpuError*>(&error)) return true;
  if (dynamic_cast<const c10::OutOfMemoryError*>(&error)) return false;
  const auto* torch = dynamic_cast<const c10::Error*>(&error);
  return torch != nullptr && torch->msg().find("CUDA error") != std::string::npos;
}

// Programs run on any driver of the same major version.
std::string why_not(const GpuPresence& presence, int index) {
  if (presence.driver_version == 0) return "there is no NVIDIA driver here";
  if (presence.driver_version / 1000 < presence.runtime_version / 1000) {
    throw ConfigError(fmt::format(
        "resources.device: cuda:{}: the driver is too old: it runs CUDA {}, this program was built "
        "with {}; update the driver, or use cpu to do without it",
        index, cuda_version(presence.driver_version), cuda_version(presence.runtime_version)));
  }
  if (index < presence.num_gpus) return "";
  return fmt::format("there are {} CUDA devices here", presence.num_gpus);
}

GpuDevice::GpuDevice(std::unique_ptr<GpuDriver> driver, const DeviceOptions& options)
    : driver_(std::move(driver)),
      requested_dtype_(options.compute_dtype),
      budget_(options.vram_budget_bytes) {
  const GpuFacts& facts = driver_->facts();
  if (budget_ > facts.total_bytes) {
    throw BudgetError(fmt::format("resources.vram_budget: {} bytes, {} ({}) has {}", budget_,
                                  facts.name, facts.model, facts.total_bytes));
  }
  driver_->use_on_this_thread();
  if (budget_ > 0) driver_->limit_allocator(budget_);
  for (SerialExecutor* thread : {&executor(), &uploads_}) {
    thread->run([this] { driver_->use_on_this_thread(); });
  }
}

// Nothing is copied any more when memory goes: uploads end with their thread's tasks, and who
// downloads has waited, or has failed.
GpuDevice::~GpuDevice() {
  uploads_.run([] {});
  executor().run([this] {
    try {
      for (const GpuStream stream : {GpuStream::kCompute, GpuStream::kDownload}) {
        driver_->record(stream)->wait();
      }
    } catch (const std::exception&) {  // a lost GPU copies nothing
    }
    leaving_.clear();
    for (const std::span<std::byte> slot : slots_) driver_->free(slot.data());
    for (AlignedBuffer& memory : staging_) driver_->unpin(memory.span());
  });
}

at::ScalarType GpuDevice::compute_dtype(at::ScalarType stored) const {
  if (requested_dtype_ == "fp32") return at::kFloat;
  if (requested_dtype_ == "bf16") return at::kBFloat16;
  return stored == at::kBFloat16 ? at::kBFloat16 : at::kFloat;
}

uint64_t GpuDevice::free_bytes() const {
  driver_->use_on_this_thread();
  return driver_->free_bytes();
}

std::span<std::byte> GpuDevice::allocate_slot(uint64_t bytes) {
  driver_->use_on_this_thread();
  if (budget_ > 0 && slot_bytes_ + bytes >= budget_) {
    throw BudgetError(fmt::format("resources.vram_budget: {} bytes, {} slots alone take {}",
                                  budget_, slots_.size() + 1, slot_bytes_ + bytes));
  }
  driver_->trim_allocator();  // what worked before, such as scores of units, may have left it all
  slots_.emplace_back(driver_->allocate(bytes), bytes);
  slot_bytes_ += bytes;
  if (budget_ > 0) driver_->limit_allocator(budget_ - slot_bytes_);
  return slots_.back();
}

void GpuDevice::forget_work() {
  driver_->use_on_this_thread();
  driver_->trim_allocator();
  driver_->forget_allocator_peak();
}

std::span<std::byte> GpuDevice::allocate_staging(uint64_t bytes) {
  driver_->use_on_this_thread();
  AlignedBuffer memory(bytes);
  driver_->pin(memory.span());  // before it is ours to unpin
  const std::lock_guard lock(staging_mutex_);
  return staging_.emplace_back(std::move(memory)).span();
}

// Pinning takes longer than copying: what goes back is kept for who asks next.
HostMemory GpuDevice::host_memory(uint64_t bytes) {
  std::span<std::byte> memory = unused_->take(bytes);
  if (memory.empty()) memory = allocate_staging(bytes);
  struct Lease {
    std::shared_ptr<Unused> unused;
    std::span<std::byte> memory;

    Lease(std::shared_ptr<Unused> pool, std::span<std::byte> bytes)
        : unused(std::move(pool)), memory(bytes) {}
    ~Lease() { unused->give(memory); }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
  };
  const auto lease = std::make_shared<Lease>(unused_, memory);
  return {lease, &lease->memory};
}

std::span<std::byte> GpuDevice::Unused::take(uint64_t bytes) {
  const std::lock_guard lock(mutex);
  std::vector<std::span<std::byte>>& of_that_size = spans[bytes];
  if (of_that_size.empty()) return {};
  const std::span<std::byte> last = of_that_size.back();
  of_that_size.pop_back();
  return last;
}

void GpuDevice::Unused::give(std::span<std::byte> span) {
  const std::lock_guard lock(mutex);
  spans[span.size()].push_back(span);
}

// Numbers of another dtype are converted there: libtorch would do it here, and make us wait.
void GpuDevice::load(const at::Tensor& host, const at::Tensor& tensor) {
  const bool is_alike = host.scalar_type() == tensor.scalar_type();
  const at::Tensor source =
      is_alike ? host : host.to(where(), host.scalar_type(), /*non_blocking=*/true);
  tensor.copy_(source, /*non_blocking=*/true);
}

CopyWait GpuDevice::computed() const {
  const std::shared_ptr<const GpuEvent> event = driver_->record(GpuStream::kCompute);
  return [this, event] {
    driver_->use_on_this_thread();
    event->wait();
  };
}

// One after the other: the stream does not copy faster, and the first slab goes back the sooner.
void GpuDevice::upload(std::vector<StagedCopy> copies, CopyCompletion done) {
  uploads_.post([this, copies = std::move(copies), done = std::move(done)] {
    std::exception_ptr failure;
    try {
      for (const StagedCopy& copy : copies) {
        driver_->copy(GpuStream::kUpload, copy.slot, copy.staged.data(), copy.staged.size());
      }
      driver_->record(GpuStream::kUpload)->wait();
    } catch (...) {
      failure = std::current_exception();
    }
    done(failure);
  });
}

bool GpuDevice::lies_in_slot(const at::Tensor& tensor) const {
  const auto* data = static_cast<const std::byte*>(tensor.const_data_ptr());
  return std::any_of(slots_.begin(), slots_.end(), [&](std::span<const std::byte> slot) {
    return data >= slot.data() && data < slot.data() + slot.size();
  });
}

// The slot is given back before the copy is done.
void GpuDevice::download(const at::Tensor& tensor, std::span<std::byte> staging) {
  const at::Tensor source =
      lies_in_slot(tensor) ? tensor.clone(at::MemoryFormat::Contiguous) : tensor.contiguous();
  driver_->record(GpuStream::kCompute)->hold(GpuStream::kDownload);
  driver_->copy(GpuStream::kDownload, staging.data(),
                static_cast<const std::byte*>(source.const_data_ptr()), staging.size());
  leaving_.push_back(source);
}

// Tensors are freed by who waits: libtorch's allocator takes them from any thread.
CopyWait GpuDevice::downloads() {
  if (leaving_.empty()) return [] {};
  const std::shared_ptr<const GpuEvent> arrival = driver_->record(GpuStream::kDownload);
  return [this, arrival, tensors = std::exchange(leaving_, {})]() mutable {
    driver_->use_on_this_thread();
    arrival->wait();
    tensors.clear();
  };
}

void GpuDevice::finish() const { driver_->record(GpuStream::kCompute)->wait(); }

at::Tensor GpuDevice::view(std::span<std::byte> bytes, at::IntArrayRef shape,
                           at::ScalarType dtype) const {
  const auto options = at::TensorOptions().dtype(dtype).device(where());
  if (reinterpret_cast<uintptr_t>(bytes.data()) % c10::elementSize(dtype) == 0) {
    return at::from_blob(bytes.data(), shape, options);
  }
  const auto raw = options.dtype(at::kByte);
  return at::from_blob(bytes.data(), {int64_t(bytes.size())}, raw).clone().view(dtype).view(shape);
}

}  // namespace coppice
