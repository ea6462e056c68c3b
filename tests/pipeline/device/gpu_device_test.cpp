// What can be known of a GPU's device without one, against a driver that plays it.
#include "pipeline/device/gpu_device.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/zeros.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <future>
#include <optional>

#include "configs/errors.h"   // ConfigError
#include "pipeline/errors.h"  // BudgetError
#include "pipeline/graph/block_graph.h"
#include "storage/io/file.h"
#include "tests/support/fake_gpu.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using testing::FakeGpu;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::IsIdenticalTo;
using ::testing::ThrowsMessage;

class GpuDeviceTest : public ::testing::Test {
 protected:
  GpuDeviceTest() { make(); }

  void TearDown() override {
    device_.reset();
    EXPECT_THAT(gpu_.misuses(), IsEmpty());
    EXPECT_EQ(gpu_.allocated_bytes(), 0u);
    EXPECT_EQ(gpu_.num_pinned(), 0u);
  }

  void make(const DeviceOptions& options = {}) {
    device_.reset();
    device_ = std::make_unique<GpuDevice>(testing::make_fake_driver(gpu_), options);
  }

  /// On the device's thread, as tensors are computed.
  void on_device(const std::function<void()>& task) { device_->executor().run(task); }

  /// Returns when `done` was called; rethrows what it was told.
  void upload(std::span<const std::byte> staged, std::byte* slot) {
    std::promise<void> done;
    device_->upload({{staged, slot}}, [&](std::exception_ptr failure) {
      failure ? done.set_exception(failure) : done.set_value();
    });
    done.get_future().get();
  }

  FakeGpu gpu_;
  std::unique_ptr<GpuDevice> device_;
};

std::span<const std::byte> bytes_of(const at::Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()};
}

at::Tensor numbers(int64_t count) { return at::arange(count, at::kFloat); }

at::Tensor as_numbers(std::span<const std::byte> bytes) {
  at::Tensor tensor = at::zeros({int64_t(bytes.size() / 4)}, at::kFloat);
  std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
  return tensor;
}

TEST_F(GpuDeviceTest, UploadedBytesAreThereWhenItSaysSo) {
  const auto slab = device_->allocate_staging(4096), slot = device_->allocate_slot(8192);
  std::memcpy(slab.data(), numbers(1024).const_data_ptr(), 4096);
  upload(slab, slot.data() + 4096);
  EXPECT_THAT(as_numbers(slot.subspan(4096)), IsIdenticalTo(numbers(1024)));
  EXPECT_EQ(gpu_.num_pending(GpuStream::kUpload), 0u);
}

// What libtorch's allocator keeps is not there for a slot, which is allocated beside it.
TEST_F(GpuDeviceTest, WhatWorkedBeforeGivesBackWhatItLeftBeforeASlotIsTaken) {
  gpu_.allocator_peak = 5;
  device_->allocate_slot(4096);
  EXPECT_GT(gpu_.num_trims, 0);
  EXPECT_EQ(device_->peak_bytes(), 4096u + 5u);
  device_->forget_work();
  EXPECT_EQ(device_->peak_bytes(), 4096u);
}

TEST_F(GpuDeviceTest, AnUploadWaitsForNothingThatIsComputed) {
  const auto slab = device_->allocate_staging(4096), slot = device_->allocate_slot(4096);
  gpu_.compute([] { FAIL() << "waited for"; });
  upload(slab, slot.data());
  EXPECT_EQ(gpu_.num_pending(GpuStream::kCompute), 1u);
  gpu_.lose();  // else the device would wait for it in the end
}

TEST_F(GpuDeviceTest, AnUploadThatFailsSaysWhy) {
  const auto slab = device_->allocate_staging(4096), slot = device_->allocate_slot(4096);
  gpu_.lose();
  EXPECT_THAT([&] { upload(slab, slot.data()); },
              ThrowsMessage<GpuError>(HasSubstr("the GPU is lost")));
}

TEST_F(GpuDeviceTest, FinishWaitsForWhatIsComputedAndForNoDownload) {
  const auto host = device_->allocate_staging(4096);
  bool is_computed = false;
  on_device([&] {
    device_->download(numbers(1024), host);
    gpu_.compute([&] { is_computed = true; });
    device_->finish();
  });
  EXPECT_TRUE(is_computed);
  EXPECT_GT(gpu_.num_pending(GpuStream::kDownload), 0u);
}

TEST_F(GpuDeviceTest, ADownloadHasWhatWasComputedBeforeIt) {
  const auto host = device_->allocate_staging(4096);
  CopyWait arrival;
  on_device([&] {
    const at::Tensor tensor = at::zeros({1024}, at::kFloat);
    gpu_.compute([=] { tensor.copy_(numbers(1024)); });
    device_->download(tensor, host);
    arrival = device_->downloads();
  });
  arrival();
  EXPECT_THAT(as_numbers(host), IsIdenticalTo(numbers(1024)));
}

TEST_F(GpuDeviceTest, ATensorStaysUntilItsDownloadHasArrived) {
  const auto host = device_->allocate_staging(4096);
  const at::Tensor tensor = numbers(1024);
  CopyWait arrival;
  on_device([&] {
    device_->download(tensor, host);
    arrival = device_->downloads();
  });
  EXPECT_EQ(tensor.use_count(), 2u);
  arrival();
  EXPECT_EQ(tensor.use_count(), 1u);
}

// It is given back, and read into again, before the copy is done.
TEST_F(GpuDeviceTest, WhatLiesInASlotIsDownloadedAsItWas) {
  const auto host = device_->allocate_staging(4096), slot = device_->allocate_slot(8192);
  CopyWait arrival;
  on_device([&] {
    const at::Tensor tensor = device_->view(slot.subspan(4096), {1024}, at::kFloat);
    tensor.copy_(numbers(1024));
    device_->download(tensor, host);
    arrival = device_->downloads();
    device_->finish();
    tensor.zero_();
  });
  arrival();
  EXPECT_THAT(as_numbers(host), IsIdenticalTo(numbers(1024)));
}

TEST_F(GpuDeviceTest, AViewWithStridesArrivesRowByRow) {
  const auto host = device_->allocate_staging(4096);
  const at::Tensor tensor = numbers(1024).view({32, 32}).t();
  const auto slot = device_->allocate_slot(4096);
  std::memcpy(slot.data(), numbers(1024).const_data_ptr(), 4096);
  on_device([&] {
    for (const at::Tensor& view : {tensor, device_->view(slot, {32, 32}, at::kFloat).t()}) {
      std::fill(host.begin(), host.end(), std::byte{0});
      device_->download(view, host);
      device_->downloads()();
      EXPECT_THAT(as_numbers(host).view({32, 32}), IsIdenticalTo(tensor.contiguous()));
    }
  });
}

TEST_F(GpuDeviceTest, DownloadsWaitForThoseSinceTheLastCall) {
  const auto host = device_->allocate_staging(4096);
  CopyWait first, none;
  on_device([&] {
    device_->download(numbers(512), host.first(2048));
    first = device_->downloads();
    none = device_->downloads();
  });
  none();
  EXPECT_GT(gpu_.num_pending(GpuStream::kDownload), 0u);
  first();
  EXPECT_EQ(gpu_.num_pending(GpuStream::kDownload), 0u);
}

TEST_F(GpuDeviceTest, ADownloadFromALostGpuSaysSo) {
  const auto host = device_->allocate_staging(4096);
  CopyWait arrival;
  on_device([&] {
    device_->download(numbers(1024), host);
    arrival = device_->downloads();
  });
  gpu_.lose();
  EXPECT_THROW(arrival(), GpuError);
}

TEST_F(GpuDeviceTest, BytesWhoseAddressDoesNotSuitAreCopied) {
  const auto slot = device_->allocate_slot(4100);
  std::memcpy(slot.data() + 1, numbers(1024).const_data_ptr(), 4096);
  on_device([&] {
    const at::Tensor copy = device_->view(slot.subspan(1, 4096), {1024}, at::kFloat);
    EXPECT_THAT(copy, IsIdenticalTo(numbers(1024)));
    EXPECT_EQ(bytes_of(copy).data() == slot.data() + 1, false);
    EXPECT_EQ(bytes_of(device_->view(slot.first(4096), {1024}, at::kFloat)).data(), slot.data());
  });
}

TEST_F(GpuDeviceTest, HostMemoryThatWentBackIsUsedAgain) {
  const std::byte* first = device_->host_memory(4096)->data();
  const HostMemory again = device_->host_memory(4096), other = device_->host_memory(4096);
  EXPECT_EQ(again->data(), first);
  EXPECT_NE(other->data(), first);
  EXPECT_EQ(device_->host_memory(8192)->size(), 8192u);
  EXPECT_EQ(gpu_.num_pinned(), 3u);
}

TEST_F(GpuDeviceTest, WhatIsComputedSoFarIsWaitedForFromAnyThread) {
  int computed = 0;
  CopyWait wait;
  on_device([&] {
    gpu_.compute([&] { ++computed; });
    wait = device_->computed();
    gpu_.compute([&] { ++computed; });
  });
  EXPECT_EQ(computed, 0);
  wait();
  EXPECT_EQ(computed, 1);
  on_device([&] { device_->finish(); });  // what counts here is done before it ends
  EXPECT_EQ(computed, 2);
}

// Its destructor, behind this test, has nothing to unpin.
TEST_F(GpuDeviceTest, MemoryThatCouldNotBePinnedIsNotKept) {
  gpu_.refuses_pins = true;
  EXPECT_THROW(device_->allocate_staging(4096), std::bad_alloc);
}

TEST_F(GpuDeviceTest, SlotsBeyondItsMemoryAreRefused) {
  EXPECT_THROW(device_->allocate_slot(gpu_.total_bytes + 1), std::bad_alloc);
  EXPECT_EQ(device_->free_bytes(), gpu_.total_bytes);
}

TEST_F(GpuDeviceTest, WhatSlotsLeaveOfABudgetIsTheAllocators) {
  make({.vram_budget_bytes = 100'000});
  EXPECT_EQ(gpu_.allocator_limit(), 100'000u);
  device_->allocate_slot(30'000);
  device_->allocate_slot(20'000);
  EXPECT_EQ(gpu_.allocator_limit(), 50'000u);
}

TEST_F(GpuDeviceTest, ThePeakIsThatOfSlotsAndAllocator) {
  device_->allocate_slot(30'000);
  gpu_.allocator_peak = 12'345;
  EXPECT_EQ(device_->peak_bytes(), 42'345u);
}

TEST_F(GpuDeviceTest, SlotsThatLeaveNothingOfABudgetAreRefused) {
  make({.vram_budget_bytes = 100'000});
  device_->allocate_slot(60'000);
  EXPECT_THAT([&] { device_->allocate_slot(40'000); },
              ThrowsMessage<BudgetError>(
                  AllOf(HasSubstr("resources.vram_budget"), HasSubstr("2 slots alone"))));
  EXPECT_EQ(gpu_.allocated_bytes(), 60'000u);
}

TEST_F(GpuDeviceTest, ABudgetBeyondTheCardIsRefusedWithWhatItHas) {
  EXPECT_THAT([&] { make({.vram_budget_bytes = 2 << 20}); },
              ThrowsMessage<BudgetError>(AllOf(HasSubstr("2097152"), HasSubstr("1048576"))));
}

TEST_F(GpuDeviceTest, ALostGpuIsGivenBackAllTheSame) {
  const auto host = device_->allocate_staging(4096);
  device_->allocate_slot(4096);
  on_device([&] { device_->download(numbers(1024), host); });
  gpu_.lose();
}

TEST_F(GpuDeviceTest, RequestedDtypeWinsOverThatOfTheWeights) {
  EXPECT_EQ(device_->compute_dtype(at::kBFloat16), at::kBFloat16);
  EXPECT_EQ(device_->compute_dtype(at::kHalf), at::kFloat);
  make({.compute_dtype = "fp32"});
  EXPECT_EQ(device_->compute_dtype(at::kBFloat16), at::kFloat);
}

// ---- streamed by the graph ----

class GpuStreamed : public GpuDeviceTest {
 protected:
  static constexpr int kSpans = 5;
  static constexpr uint64_t kSpanBytes = 64 << 10;

  GpuStreamed() {
    const auto path = dir_ / "shard";
    std::ofstream out(path, std::ios::binary);
    const at::Tensor all = numbers(kSpans * kSpanBytes / 4);
    out.write(static_cast<const char*>(all.const_data_ptr()), std::streamsize(all.nbytes()));
    out.close();
    file_.emplace(path);
    files_ = {&*file_};
    work_.num_spans = kSpans;
    work_.plan = [this](GraphSpan& span) {
      span.files = files_;
      const Extent extent{0, span.index * kSpanBytes, kSpanBytes};
      const uint64_t bytes = kSpans * kSpanBytes;
      span.plan = plan_reads({&extent, 1}, {&bytes, 1}, {.max_read_bytes = 16 << 10});
    };
  }

  GraphResult stream() {
    GraphOptions options;
    options.slab_bytes = 32 << 10;
    options.num_slabs = 2;
    for (int i = 0; i < 2; ++i) options.slots.push_back(device_->allocate_slot(kSpanBytes));
    for (int i = 0; i < 2; ++i) options.slabs.push_back(device_->allocate_staging(32 << 10));
    options.upload = [this](const GraphSpan& span, const std::vector<StagedPiece>& pieces,
                            CopyCompletion done) {
      std::vector<StagedCopy> copies;
      copies.reserve(pieces.size());
      for (const auto& [bytes, offset] : pieces) copies.push_back({bytes, &span.slot[offset]});
      device_->upload(std::move(copies), std::move(done));
    };
    const auto engine = make_io_engine({});
    SerialExecutor store("store");
    BlockGraph graph(std::move(options), work_, *engine, {{device_->executor()}}, store);
    return graph.run();
  }

  testing::TempDir dir_;
  std::optional<ReadFile> file_;
  std::vector<const ReadFile*> files_;
  GraphWork work_;
};

TEST_F(GpuStreamed, EverySpanIsComputedFromItsOwnBytes) {
  work_.forward = [this](GraphSpan& span) {
    const auto bytes = span.slot.subspan(span.plan.placements[0].slot_offset, kSpanBytes);
    EXPECT_THAT(as_numbers(bytes),
                IsIdenticalTo(numbers(kSpans * kSpanBytes / 4)
                                  .slice(0, span.index * int64_t(kSpanBytes / 4),
                                         (span.index + 1) * int64_t(kSpanBytes / 4))));
    device_->finish();
  };
  EXPECT_EQ(stream().retired, kSpans);
}

TEST_F(GpuStreamed, AGpuThatIsLostEndsTheRunWithTheSpanAndTheStep) {
  work_.forward = [this](GraphSpan& span) {
    if (span.index == 1) gpu_.lose();
    device_->finish();
  };
  try {
    stream();
    ADD_FAILURE() << "went on";
  } catch (const BlockError& error) {
    EXPECT_THAT(error.what(), HasSubstr("span 1, forward"));
    EXPECT_THAT(error_chain(error), AllOf(HasSubstr("lost"), HasSubstr("--resume")));
    EXPECT_EQ(exit_code(error), 1);
  }
}

// ---- is there a GPU ----

TEST(GpuPresence, WhereThereIsOneNothingStandsAgainstIt) {
  EXPECT_EQ(why_not({13000, 13000, 2}, 1), "");
  EXPECT_EQ(why_not({13010, 13000, 1}, 0), "");
  EXPECT_EQ(why_not({13000, 13020, 1}, 0), "") << "minor versions go together";
}

TEST(GpuPresence, WithoutADriverOrAGpuItSaysWhichIsMissing) {
  EXPECT_THAT(why_not({0, 13000, 0}, 0), HasSubstr("no NVIDIA driver"));
  EXPECT_THAT(why_not({13000, 13000, 0}, 0), HasSubstr("0 CUDA devices"));
  EXPECT_THAT(why_not({13000, 13000, 2}, 2), HasSubstr("2 CUDA devices"));
}

TEST(GpuPresence, ADriverTooOldIsAnErrorWithBothVersions) {
  EXPECT_THAT(
      [] {
        why_not({12040, 13000, 0}, 0);
      },
      ThrowsMessage<ConfigError>(
          AllOf(HasSubstr("12.4"), HasSubstr("13.0"), HasSubstr("use cpu"))));
}

}  // namespace
}  // namespace coppice
