#include "pipeline/graph/cached_activations.h"

#include <ATen/ops/arange.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <numeric>

#include "storage/errors.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;

constexpr int kWindows = 9, kSeqlen = 5, kHidden = 24;
constexpr Boundary kBoundary{Stream::kDense, 3};
constexpr HalfRange kFromThere{3, 4};

class CachedActivationsTest : public ::testing::TestWithParam<const char*> {
 protected:
  std::unique_ptr<CachedBoundaries> boundaries(int ahead = 2) {
    CacheOptions options;
    options.directory = dir_.path();
    options.shape = {kWindows, kSeqlen, kHidden, GetParam()};
    options.compute = at::kFloat;
    options.windows_ahead = ahead;
    options.windows_behind = 2;
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
  static void write_all(CachedBoundaries& boundaries) {
    const auto sink = boundaries.sink(kBoundary);
    for (int window = kWindows - 1; window >= 0; --window) sink->write(window, content(window));
  }

  testing::TempDir dir_;
  std::unique_ptr<IoEngine> engine_ = make_io_engine({});
  SerialExecutor hdf5_{"hdf5"};
  RunMeters meters_;
  std::map<Boundary, FileRecord> durable_;
};

TEST_P(CachedActivationsTest, WindowsComeBackAsTheyWere) {
  const auto cache = boundaries();
  write_all(*cache);
  const auto source = cache->inputs(kFromThere);
  EXPECT_EQ(source->num_windows(), kWindows);
  for (int window = 0; window < kWindows; ++window) {
    EXPECT_TRUE(source->read(std::span(&window, 1)).hidden.equal(content(window))) << window;
  }
}

TEST_P(CachedActivationsTest, AnnouncedOrderAndAnyOtherOrderGiveTheSame) {
  const auto cache = boundaries();
  write_all(*cache);
  const auto source = cache->inputs(kFromThere);
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
  const auto source = cache->inputs(kFromThere);
  const std::vector<int> windows = {6, 2};
  const MicroBatch batch = source->read(windows);
  EXPECT_THAT(batch.lengths, ElementsAre(kSeqlen, kSeqlen));
  EXPECT_TRUE(batch.hidden.narrow(0, 0, kSeqlen).equal(content(6)));
  EXPECT_TRUE(batch.hidden.narrow(0, kSeqlen, kSeqlen).equal(content(2)));
}

TEST_P(CachedActivationsTest, BoundaryIsReportedOnceDurableAndOutlivesTheJob) {
  {
    const auto cache = boundaries();
    write_all(*cache);
    cache->wait_durable(kBoundary);
    ASSERT_EQ(durable_.count(kBoundary), 1u);
    EXPECT_EQ(durable_.at(kBoundary), hash_file(cache->path_of(kBoundary)));
  }
  const auto cache = boundaries();
  const int window = 5;
  EXPECT_TRUE(cache->inputs(kFromThere)->read(std::span(&window, 1)).hidden.equal(content(5)));
}

TEST_P(CachedActivationsTest, UnfinishedBoundaryLeavesNoFile) {
  const auto cache = boundaries();
  {
    const auto sink = cache->sink(kBoundary);
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
  const auto source = cache->inputs(kFromThere);
  for (const int window : {3, 4}) {
    if (window == 4) {
      EXPECT_THROW(source->read(std::span(&window, 1)), CorruptionError);
    } else {
      EXPECT_TRUE(source->read(std::span(&window, 1)).hidden.equal(content(window)));
    }
  }
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
  cache->set_unwanted([](Boundary boundary) { return boundary.half == 3; });
  EXPECT_EQ(cache->sink(kBoundary), nullptr);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CachedActivationsTest, ::testing::Values("BF16", "F32"));

}  // namespace
}  // namespace coppice
