// Checkpoints of awkward shapes through reader, plan, slabs and engine: every tensor arrives as it
// lies in its file. Over every engine, and with memory registered as the program has it.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <random>

#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/checkpoint/checkpoint_writer.h"
#include "storage/errors.h"
#include "storage/io/aligned_buffer.h"
#include "storage/io/io_engine.h"
#include "storage/io/read_plan.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using testing::TempDir;

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;

/// Byte `i` of a tensor: no two tensors and no two places look alike.
std::byte content(const std::string& name, uint64_t i) {
  const uint64_t seed = std::hash<std::string>{}(name);
  return static_cast<std::byte>((seed >> (i % 7 * 8)) + i * 31 + i / 4096 * 7);
}

using Shards = std::vector<std::vector<TensorSpec>>;

void write_checkpoint(const std::filesystem::path& directory, const Shards& shards) {
  std::map<std::string, std::string> shard_of_tensor;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string name = shard_name(static_cast<int>(i), static_cast<int>(shards.size()));
    const AlignedBuffer memory(ShardImage::bytes_needed(shards[i]));
    const ShardImage image(memory.span(), shards[i]);
    for (const TensorSpec& tensor : shards[i]) {
      const std::span<std::byte> bytes = image.tensor(tensor.name);
      for (uint64_t b = 0; b < bytes.size(); ++b) bytes[b] = content(tensor.name, b);
      shard_of_tensor[tensor.name] = name;
    }
    write_shard(directory / name, image.bytes());
  }
  write_index(directory, shard_of_tensor, 0);
}

struct Staging {
  uint64_t slab_bytes = 8 * kMiB;
  uint64_t max_read_bytes = 4 * kMiB;
};

std::vector<EngineChoice> available_engines() {
  std::vector<EngineChoice> engines{EngineChoice::kPread};
  try {
    make_io_engine({.engine = EngineChoice::kUring});
    engines.push_back(EngineChoice::kUring);
  } catch (const IoError&) {  // shown by IoEngine.UringIsGrantedHere
  }
  return engines;
}

class CheckpointStreaming : public ::testing::TestWithParam<EngineChoice> {
 protected:
  /// Reads every tensor slab by slab: each slab into staging memory, from there to its place.
  static void expect_every_tensor(const std::filesystem::path& directory, const Staging& staging) {
    const CheckpointReader checkpoint(directory);
    std::vector<std::string> names = checkpoint.names();
    std::ranges::shuffle(names, std::mt19937_64(1));
    std::vector<Extent> wanted;
    wanted.reserve(names.size());
    for (const std::string& name : names) wanted.push_back(checkpoint.extent(name));
    const ReadPlan plan =
        plan_reads(wanted, checkpoint.file_bytes(), {.max_read_bytes = staging.max_read_bytes});

    const AlignedBuffer slab(std::max(staging.slab_bytes, staging.max_read_bytes));
    const AlignedBuffer slot(plan.slot_bytes);
    const auto engine = make_io_engine({.engine = GetParam()});
    LongLived long_lived{.memory = {slab.span()}, .files = {}};
    for (const auto& file : checkpoint.files()) long_lived.files.push_back(file.get());
    const Registration held = engine->register_long_lived(long_lived);
    for (const SlabRange& range : cut_into_slabs(plan, staging.slab_bytes)) {
      const uint64_t base = plan.reads[range.first].slot_offset;
      ReadBatch batch;
      for (uint32_t i = range.first; i < range.last; ++i) {
        const PlannedRead& read = plan.reads[i];
        batch.reads.push_back({.file = checkpoint.files()[read.file].get(),
                               .offset = read.offset,
                               .into = slab.span().subspan(read.slot_offset - base, read.bytes),
                               .required_bytes = read.required_bytes});
      }
      read_now(*engine, std::move(batch));
      std::ranges::copy(slab.span().first(range.bytes), slot.span().subspan(base).begin());
    }

    for (size_t i = 0; i < names.size(); ++i) {
      const auto arrived =
          slot.span().subspan(plan.placements[i].slot_offset, plan.placements[i].bytes);
      ASSERT_EQ(arrived.size(), checkpoint.tensor(names[i]).bytes);
      for (uint64_t b = 0; b < arrived.size(); ++b) {
        ASSERT_EQ(arrived[b], content(names[i], b)) << names[i] << ", byte " << b;
      }
    }
  }

  TempDir directory_;
};

TEST_P(CheckpointStreaming, ThousandsOfTinyTensors) {
  Shards shards(3);
  for (int64_t i = 0; i < 6000; ++i) {
    shards[static_cast<size_t>(i % 3)].push_back({fmt::format("t{}", i), "U8", {1 + i % 97}});
  }
  write_checkpoint(directory_.path(), shards);
  expect_every_tensor(directory_.path(), {});
  expect_every_tensor(directory_.path(), {.slab_bytes = 8 * kKiB, .max_read_bytes = 4 * kKiB});
}

TEST_P(CheckpointStreaming, ATensorLargerThanASlab) {
  write_checkpoint(
      directory_.path(),
      {{{"before", "U8", {3}}, {"large", "U8", {int64_t{9 * kMiB} + 77}}, {"after", "U8", {5}}}});
  expect_every_tensor(directory_.path(), {.slab_bytes = kMiB, .max_read_bytes = 256 * kKiB});
  // Reads larger than a slab stay alone, in memory as large as they are.
  expect_every_tensor(directory_.path(), {.slab_bytes = 64 * kKiB, .max_read_bytes = 256 * kKiB});
}

TEST_P(CheckpointStreaming, TensorsOfOneBlockInManyShards) {
  Shards shards(9);
  for (size_t i = 0; i < shards.size(); ++i) {
    shards[i] = {{fmt::format("a{}", i), "U8", {static_cast<int64_t>(i * 70'001 + 1)}},
                 {fmt::format("b{}", i), "BF16", {static_cast<int64_t>(1 + i), 511}}};
  }
  write_checkpoint(directory_.path(), shards);
  expect_every_tensor(directory_.path(), {});
  expect_every_tensor(directory_.path(), {.slab_bytes = 100'000, .max_read_bytes = 16 * kKiB});
}

// Odd lengths end to end: hardly a tensor begins at a multiple of anything.
TEST_P(CheckpointStreaming, TensorsThatBeginAnywhere) {
  Shards shards(1);
  std::mt19937_64 random(7);
  for (int i = 0; i < 200; ++i) {
    shards[0].push_back(
        {fmt::format("t{}", i), "U8", {static_cast<int64_t>(1 + random() % 30'000)}});
  }
  write_checkpoint(directory_.path(), shards);
  expect_every_tensor(directory_.path(), {});
  expect_every_tensor(directory_.path(), {.slab_bytes = 64 * kKiB, .max_read_bytes = 12 * kKiB});
}

TEST_P(CheckpointStreaming, EmptyTensorsTakeNoReads) {
  write_checkpoint(directory_.path(),
                   {{{"none", "F32", {0, 7}}, {"some", "U8", {10}}}, {{"nothing", "U8", {0}}}});
  expect_every_tensor(directory_.path(), {});
}

TEST_P(CheckpointStreaming, AFileSystemWithoutDirectReads) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  const std::filesystem::path directory =
      "/dev/shm/coppice_streaming_test." + std::to_string(getpid());
  std::filesystem::create_directory(directory);
  write_checkpoint(directory, {{{"a", "U8", {int64_t{5 * kMiB} + 1}}, {"b", "U8", {3}}},
                               {{"c", "U8", {77'777}}}});
  expect_every_tensor(directory, {.slab_bytes = kMiB, .max_read_bytes = 512 * kKiB});
  std::filesystem::remove_all(directory);
}

INSTANTIATE_TEST_SUITE_P(Engines, CheckpointStreaming, ::testing::ValuesIn(available_engines()),
                         [](const auto& engine) {
                           return engine.param == EngineChoice::kUring ? "Uring" : "Pread";
                         });

}  // namespace
}  // namespace coppice
