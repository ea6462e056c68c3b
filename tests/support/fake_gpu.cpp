#include "tests/support/fake_gpu.h"

#include <cstring>
#include <new>

namespace coppice::testing {

void FakeGpu::lose() {
  const std::lock_guard lock(mutex_);
  is_lost_ = true;
}

void FakeGpu::lose_after(int calls) {
  const std::lock_guard lock(mutex_);
  calls_left_ = calls;
}

void FakeGpu::compute(std::function<void()> kernel) {
  const std::lock_guard lock(mutex_);
  streams_[GpuStream::kCompute].works.push_back(std::move(kernel));
}

size_t FakeGpu::num_pending(GpuStream stream) {
  const std::lock_guard lock(mutex_);
  return streams_[stream].works.size() - streams_[stream].num_done;
}

void FakeGpu::check(const char* what) {
  if (!threads_.contains(std::this_thread::get_id())) {
    misuses_.push_back(std::string(what) + " on a thread without a GPU");
  }
  if (calls_left_ > 0 && --calls_left_ == 0) is_lost_ = true;
  if (is_lost_) throw GpuError(std::string("fake: ") + what + ": the GPU is lost");
}

void FakeGpu::run_until(GpuStream stream, size_t count) {
  Stream& it = streams_[stream];
  while (it.num_done < count) it.works[it.num_done++]();
}

class FakeEvent final : public GpuEvent {
 public:
  FakeEvent(FakeGpu& gpu, GpuStream stream)
      : gpu_(gpu), stream_(stream), count_(gpu.streams_[stream].works.size()) {}

  void wait() const override {
    const std::lock_guard lock(gpu_.mutex_);
    gpu_.check("wait");
    gpu_.run_until(stream_, count_);
  }
  void hold(GpuStream stream) const override {
    const std::lock_guard lock(gpu_.mutex_);
    gpu_.check("hold");
    gpu_.streams_[stream].works.push_back(
        [&gpu = gpu_, of = stream_, count = count_] { gpu.run_until(of, count); });
  }

 private:
  FakeGpu& gpu_;
  GpuStream stream_;
  size_t count_;
};

class FakeDriver final : public GpuDriver {
 public:
  explicit FakeDriver(FakeGpu& gpu)
      : gpu_(gpu), facts_{"cuda:0", "a fake", "fake", gpu.total_bytes} {}

  const GpuFacts& facts() const override { return facts_; }
  at::Device where() const override { return gpu_.where; }
  void use_on_this_thread() const override {
    const std::lock_guard lock(gpu_.mutex_);
    gpu_.threads_.insert(std::this_thread::get_id());
  }

  uint64_t free_bytes() const override {
    const std::lock_guard lock(gpu_.mutex_);
    gpu_.check("free_bytes");
    return gpu_.total_bytes - gpu_.allocated_bytes_;
  }
  void limit_allocator(uint64_t bytes) override { gpu_.allocator_limit_ = bytes; }

  uint64_t allocator_peak_bytes() const override { return gpu_.allocator_peak; }
  void forget_allocator_peak() override { gpu_.allocator_peak = 0; }
  void trim_allocator() override { ++gpu_.num_trims; }

  std::byte* allocate(uint64_t bytes) override {
    const std::lock_guard lock(gpu_.mutex_);
    gpu_.check("allocate");
    if (gpu_.allocated_bytes_ + bytes > gpu_.total_bytes) throw std::bad_alloc();
    gpu_.allocated_bytes_ += bytes;
    std::vector<std::byte> memory(bytes);
    std::byte* address = memory.data();
    gpu_.memory_.emplace(address, std::move(memory));
    return address;
  }
  void free(std::byte* memory) noexcept override {
    const std::lock_guard lock(gpu_.mutex_);
    const auto found = gpu_.memory_.find(memory);
    if (found == gpu_.memory_.end()) {
      gpu_.misuses_.emplace_back("freed what is not allocated");
      return;
    }
    gpu_.allocated_bytes_ -= found->second.size();
    gpu_.memory_.erase(found);
  }

  void pin(std::span<std::byte> memory) override {
    const std::lock_guard lock(gpu_.mutex_);
    gpu_.check("pin");
    if (gpu_.refuses_pins) throw std::bad_alloc();
    gpu_.pinned_.insert(memory.data());
  }
  void unpin(std::span<std::byte> memory) noexcept override {
    const std::lock_guard lock(gpu_.mutex_);
    if (gpu_.pinned_.erase(memory.data()) == 0) {
      gpu_.misuses_.emplace_back("unpinned what is not pinned");
    }
  }

  void copy(GpuStream stream, std::byte* to, const std::byte* from, uint64_t bytes) override {
    const std::lock_guard lock(gpu_.mutex_);
    gpu_.check("copy");
    gpu_.streams_[stream].works.push_back([=] { std::memcpy(to, from, bytes); });
  }
  std::unique_ptr<GpuEvent> record(GpuStream stream) override {
    const std::lock_guard lock(gpu_.mutex_);
    gpu_.check("record");
    return std::make_unique<FakeEvent>(gpu_, stream);
  }

 private:
  FakeGpu& gpu_;
  GpuFacts facts_;
};

std::unique_ptr<GpuDriver> make_fake_driver(FakeGpu& gpu) {
  return std::make_unique<FakeDriver>(gpu);
}

}  // namespace coppice::testing
