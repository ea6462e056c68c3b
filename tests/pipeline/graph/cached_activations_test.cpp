#include "pipeline/graph/cached_activations.h"

#include <ATen/ops/arange.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <future>
#include <new>
#include <numeric>
#include <utility>

#include "pipeline/device/gpu_device.h"
#include "storage/errors.h"
#include "tests/support/fake_gpu.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;

constexpr int kWindows = 9, kSeqlen = 5, kHidden = 24;
constexpr Boundary kBoundary{Stream::kDense, 4}, kInsideABlock{Stream::kDense, 5};

class CachedActivationsTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<CachedBoundaries> boundaries(int ahead = 2, int64_t targets_in_ram = 0,
                                               int64_t inputs_in_ram = 0,
                                               std::vector<std::vector<int>> lengths = {}) {
    CacheOptions options;
    options.directory = dir_.path();
    options.shape = {kWindows, kSeqlen, kHidden, GetParam()};
    options.lengths = std::move(lengths);
    options.compute = at::kFloat;
    options.windows_ahead = ahead;
    options.windows_behind = 2;
    options.targets_in_ram = targets_in_ram;
    options.inputs_in_ram = inputs_in_ram;
    return std::make_unique<CachedBoundaries>(
        std::move(options), *engine_, hdf5_, meters_,
        [this](Boundary boundary, const FileRecord& file) { durable_[boundary] = file; });
  }

  // Values that every dtype holds exactly, different in each window.
  static at::Tensor content(int window) {
    return at::arange(kSeqlen * kHidden, at::kFloat)
        .reshape({kSeqlen, kHidden})
        .remainder(64)
        .add(window * 0.5);
  }
  void write_all(CachedBoundaries& boundaries, Boundary boundary = kBoundary) {
    const auto sink = boundaries.sink(boundary, user_);
    for (int window = kWindows - 1; window >= 0; --window) sink->write(window, content(window));
  }

  static void expect_all(ActivationSource& source) {
    for (const int window : {8, 0, 3, 4, 1, 7, 2, 6, 5}) {
      EXPECT_TRUE(source.read(std::span(&window, 1)).hidden.equal(content(window))) << window;
    }
  }
  void expect_windows_of_sequences() {
    const auto cache = boundaries(2, 0, /*inputs_in_ram=*/4,
                                  {{2, 1}, {5}, {1}, {3}, {1, 1, 1}, {4}, {5}, {2}, {2, 2}});
    const auto filled = [](int window, int64_t tokens) {
      return content(window).narrow(0, 0, tokens);
    };
    {
      const auto sink = cache->sink(kBoundary, user_);
      const std::vector<int64_t> tokens = {3, 5, 1, 3, 3, 4, 5, 2, 4};
      for (int window = 0; window < kWindows; ++window) {
        sink->write(window, filled(window, tokens[size_t(window)]));
      }
    }
    const auto source = cache->source(kBoundary, user_);
    const std::vector<int> windows = {8, 0, 2};  // from the file, and from memory
    const MicroBatch batch = source->read(windows);
    EXPECT_THAT(batch.lengths, ElementsAre(2, 2, 2, 1, 1));
    ASSERT_EQ(batch.hidden.size(0), 8);
    EXPECT_TRUE(batch.hidden.narrow(0, 0, 4).equal(filled(8, 4)));
    EXPECT_TRUE(batch.hidden.narrow(0, 4, 3).equal(filled(0, 3)));
    EXPECT_TRUE(batch.hidden.narrow(0, 7, 1).equal(filled(2, 1)));
  }
  /// Of the chunks as they lie in the file.
  static std::vector<uint64_t> checksums(const CachedBoundaries& cache) {
    const ActivationCacheReader reader(cache.path_of(kBoundary));
    std::vector<uint64_t> sums;
    sums.reserve(kWindows);
    for (int window = 0; window < kWindows; ++window) sums.push_back(reader.chunk(window).xxh3);
    return sums;
  }
  int64_t windows_in_file(const CachedBoundaries& cache, Boundary boundary) const {
    if (!std::filesystem::exists(cache.path_of(boundary))) return 0;
    return ActivationCacheReader(cache.path_of(boundary)).shape().windows;
  }

  testing::TempDir dir_;
  std::unique_ptr<IoEngine> engine_ = make_io_engine({});
  SerialExecutor hdf5_{"hdf5"};
  RunMeters meters_;
  const std::unique_ptr<Device> device_ = make_device({.device = "cpu"});
  CacheUser user_{.device = device_.get()};
  std::map<Boundary, FileRecord> durable_;
};

TEST_P(CachedActivationsTest, WindowsComeBackAsTheyWere) {
  const auto cache = boundaries();
  write_all(*cache);
  const auto source = cache->source(kBoundary, user_);
  EXPECT_EQ(source->num_windows(), kWindows);
  for (int window = 0; window < kWindows; ++window) {
    EXPECT_TRUE(source->read(std::span(&window, 1)).hidden.equal(content(window))) << window;
  }
}

// It does nothing before somebody waits: what is encoded too early, or filled again, would be
// wrong.
TEST_P(CachedActivationsTest, WindowsComeBackThroughAGpusHostMemory) {
  testing::FakeGpu gpu;
  GpuDevice device(testing::make_fake_driver(gpu), {});
  user_.device = &device;
  device.executor().run([&] {
    const auto cache = boundaries();
    write_all(*cache);
    const auto source = cache->source(kBoundary, user_);
    source->announce(std::vector<int>{8, 0, 3, 4, 1, 7, 2, 6, 5});
    expect_all(*source);
  });
  EXPECT_EQ(gpu.num_pending(GpuStream::kDownload), 0u);
  EXPECT_THAT(gpu.misuses(), ::testing::IsEmpty());
  user_.device = device_.get();
}

// Split into planes there, and not by the codec.
TEST_P(CachedActivationsTest, AGpusChunksAreThoseOfACpu) {
  write_all(*boundaries());  // gone when all is written
  const std::vector<uint64_t> of_cpu = checksums(*boundaries());
  testing::FakeGpu gpu;
  GpuDevice device(testing::make_fake_driver(gpu), {});
  ASSERT_EQ(device.chunk_layout(), ChunkLayout::kPlanes);
  user_.device = &device;
  device.executor().run([&] { write_all(*boundaries()); });
  user_.device = device_.get();
  EXPECT_EQ(checksums(*boundaries()), of_cpu);
}

TEST_P(CachedActivationsTest, AGpuThatIsLostEndsWithAnErrorAndNotInADestructor) {
  testing::FakeGpu gpu;
  GpuDevice device(testing::make_fake_driver(gpu), {});
  user_.device = &device;
  device.executor().run([&] {
    const auto cache = boundaries();
    write_all(*cache);
    const auto source = cache->source(kBoundary, user_);
    const int window = 3;
    source->read(std::span(&window, 1));
    gpu.lose();
    EXPECT_THROW(source->read(std::span(&window, 1)), GpuError);
  });
  user_.device = device_.get();
}

TEST_P(CachedActivationsTest, AnnouncedOrderAndAnyOtherOrderGiveTheSame) {
  const auto cache = boundaries();
  write_all(*cache);
  const auto source = cache->source(kBoundary, user_);
  const std::vector<int> order = {4, 1, 8, 0, 2};
  source->announce(order);
  for (const int window : {4, 1, 7, 8, 0, 2, 2, 6}) {  // 7, the second 2 and 6 were not announced
    EXPECT_TRUE(source->read(std::span(&window, 1)).hidden.equal(content(window))) << window;
  }
  source->announce(std::vector<int>{3, 5});
  for (const int window : {3, 5}) {
    EXPECT_TRUE(source->read(std::span(&window, 1)).hidden.equal(content(window))) << window;
  }
}

TEST_P(CachedActivationsTest, BatchLaysItsWindowsEndToEnd) {
  const auto cache = boundaries(4);
  write_all(*cache);
  const auto source = cache->source(kBoundary, user_);
  const std::vector<int> windows = {6, 2};
  const MicroBatch batch = source->read(windows);
  EXPECT_THAT(batch.lengths, ElementsAre(kSeqlen, kSeqlen));
  EXPECT_TRUE(batch.hidden.narrow(0, 0, kSeqlen).equal(content(6)));
  EXPECT_TRUE(batch.hidden.narrow(0, kSeqlen, kSeqlen).equal(content(2)));
}

TEST_P(CachedActivationsTest, WindowsOfSequencesComeBackWithoutWhatFillsThem) {
  expect_windows_of_sequences();
}

TEST_P(CachedActivationsTest, WindowsOfSequencesComeBackFromAGpuWithoutWhatFillsThem) {
  testing::FakeGpu gpu;
  GpuDevice device(testing::make_fake_driver(gpu), {});
  user_.device = &device;
  device.executor().run([&] { expect_windows_of_sequences(); });
  user_.device = device_.get();
}

TEST_P(CachedActivationsTest, BoundaryIsReportedOnceDurableAndOutlivesTheJob) {
  {
    const auto cache = boundaries();
    write_all(*cache);
    cache->wait_durable(kBoundary);
    ASSERT_EQ(durable_.count(kBoundary), 1u);
    EXPECT_EQ(durable_.at(kBoundary), ActivationCacheReader(cache->path_of(kBoundary)).record());
  }
  const auto cache = boundaries();
  const int window = 5;
  EXPECT_TRUE(
      cache->source(kBoundary, user_)->read(std::span(&window, 1)).hidden.equal(content(5)));
}

TEST_P(CachedActivationsTest, InsideABlockEachWindowIsInMemoryOrInTheFile) {
  for (const int64_t in_ram : {0, 1, 4, kWindows - 1, kWindows, 2 * kWindows}) {
    const auto cache = boundaries(3, in_ram, 0);
    write_all(*cache, kInsideABlock);
    cache->wait_durable(kInsideABlock);
    EXPECT_EQ(windows_in_file(*cache, kInsideABlock), std::max<int64_t>(0, kWindows - in_ram));
    expect_all(*cache->source(kInsideABlock, user_));
    cache->expire(kInsideABlock);
    EXPECT_TRUE(std::filesystem::is_empty(dir_.path())) << in_ram;
  }
  EXPECT_TRUE(durable_.empty());  // it is made again with its block: no run continues from it
}

TEST_P(CachedActivationsTest, BetweenBlocksTheFileHoldsEveryWindowWhateverIsInMemory) {
  for (const int64_t in_ram : {0, 1, 4, kWindows}) {
    const auto cache = boundaries(3, 0, in_ram);
    write_all(*cache);
    cache->wait_durable(kBoundary);
    EXPECT_EQ(windows_in_file(*cache, kBoundary), kWindows);
    expect_all(*cache->source(kBoundary, user_));
    expect_all(
        *boundaries()->source(kBoundary, user_));  // another process, which has the file alone
  }
}

TEST_P(CachedActivationsTest, WhatIsInMemoryIsReadBeforeItsFileIsDurable) {
  std::promise<void> room;
  const auto there_is_room = room.get_future().share();
  CacheOptions options;
  options.directory = dir_.path();
  options.shape = {kWindows, kSeqlen, kHidden, GetParam()};
  options.compute = at::kFloat;
  options.windows_behind = kWindows;
  options.inputs_in_ram = kWindows;
  CachedBoundaries cache(options, *engine_, hdf5_, meters_,
                         [there_is_room](Boundary, const FileRecord&) { there_is_room.wait(); });
  write_all(cache);
  expect_all(*cache.source(kBoundary, user_));  // would hang if it waited for what waits here
  room.set_value();
  cache.wait_durable(kBoundary);
}

TEST_P(CachedActivationsTest, WhatIsInMemoryIsNotRead) {
  const auto cache = boundaries(3, 0, kWindows);
  write_all(*cache);
  cache->wait_durable(kBoundary);
  const auto source = cache->source(kBoundary, user_);
  std::filesystem::resize_file(cache->path_of(kBoundary), 4096);
  expect_all(*source);
}

TEST_P(CachedActivationsTest, WindowMissingInMemoryIsAnError) {
  const auto cache = boundaries(2, kWindows, 0);
  {
    const auto sink = cache->sink(kInsideABlock, user_);
    for (int window = 1; window < kWindows; ++window) sink->write(window, content(window));
  }
  EXPECT_THROW(cache->wait_durable(kInsideABlock), std::logic_error);
}

TEST_P(CachedActivationsTest, UnfinishedBoundaryLeavesNoFile) {
  const auto cache = boundaries();
  {
    const auto sink = cache->sink(kBoundary, user_);
    sink->write(0, content(0));
  }
  EXPECT_ANY_THROW(cache->wait_durable(kBoundary));
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_P(CachedActivationsTest, FlippedBitIsAnErrorAndNeverData) {
  const auto cache = boundaries();
  write_all(*cache);
  cache->wait_durable(kBoundary);
  const ActivationCacheReader reader(cache->path_of(kBoundary));
  const uint64_t offset = reader.chunk(4).offset + 3;
  std::fstream file(cache->path_of(kBoundary), std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(long(offset));
  const char byte = char(file.get() ^ 4);
  file.seekp(long(offset));
  file.put(byte);
  file.close();
  const auto source = cache->source(kBoundary, user_);
  for (const int window : {3, 4}) {
    if (window == 4) {
      EXPECT_THROW(source->read(std::span(&window, 1)), CorruptionError);
    } else {
      EXPECT_TRUE(source->read(std::span(&window, 1)).hidden.equal(content(window)));
    }
  }
}

/// Has no memory for a read, once it is told so.
class EngineWithoutMemory final : public IoEngine {
 public:
  explicit EngineWithoutMemory(IoEngine& engine) : engine_(engine) {}
  std::string_view name() const override { return engine_.name(); }
  void submit(ReadBatch batch, ReadCompletion done) override {
    if (is_out_of_memory) throw std::bad_alloc();
    engine_.submit(std::move(batch), std::move(done));
  }
  bool is_out_of_memory = false;

 private:
  IoEngine& engine_;
};

// Else it would hang here: nothing is in flight that could end.
TEST_P(CachedActivationsTest, AReadThatCouldNotBeStartedIsNotWaitedFor) {
  const auto real_engine = std::move(engine_);
  auto faulty = std::make_unique<EngineWithoutMemory>(*real_engine);
  EngineWithoutMemory& engine = *faulty;
  engine_ = std::move(faulty);
  const auto cache = boundaries();
  write_all(*cache);
  const auto source = cache->source(kBoundary, user_);
  engine.is_out_of_memory = true;
  EXPECT_THROW(source->announce(std::vector<int>{4, 1}), std::bad_alloc);
  const int window = 4;
  EXPECT_THROW(source->read(std::span(&window, 1)), std::bad_alloc);
  engine.is_out_of_memory = false;
  EXPECT_TRUE(source->read(std::span(&window, 1)).hidden.equal(content(window)));
}

TEST_P(CachedActivationsTest, ExpiredBoundaryIsGone) {
  const auto cache = boundaries();
  write_all(*cache);
  cache->wait_durable(kBoundary);
  cache->expire(kBoundary);
  EXPECT_TRUE(std::filesystem::is_empty(dir_.path()));
}

TEST_P(CachedActivationsTest, UnwantedBoundaryHasNoSink) {
  const auto cache = boundaries();
  cache->set_unwanted([](Boundary boundary) { return boundary == kBoundary; });
  EXPECT_EQ(cache->sink(kBoundary, user_), nullptr);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CachedActivationsTest, ::testing::Values("BF16", "F32"));

}  // namespace
}  // namespace coppice
