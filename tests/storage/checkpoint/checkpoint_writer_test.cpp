#include "storage/checkpoint/checkpoint_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "storage/errors.h"
#include "storage/io/file.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::TempDir;

/// Bytes of a tensor that differ from those of every other name and place.
std::string content(const std::string& name, size_t bytes) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(name[0] * 3 + i * 7 + i / 1000);
  return text;
}

std::string bytes_in_file(const std::filesystem::path& path, const std::string& tensor) {
  const std::string file = read_file(path);
  for (const TensorInfo& info : read_safetensors_header(path).tensors) {
    if (info.name == tensor) return file.substr(info.offset, info.bytes);
  }
  throw std::out_of_range(tensor);
}

FileRecord write_filled(const std::filesystem::path& path, const std::vector<TensorSpec>& specs) {
  std::vector<std::byte> memory(ShardImage::bytes_needed(specs));
  const ShardImage image(memory, specs);
  for (const TensorSpec& spec : specs) {
    const std::string text = content(spec.name, spec.bytes());
    std::ranges::copy(std::as_bytes(std::span(text)), image.tensor(spec.name).begin());
  }
  return write_shard(path, image.bytes());
}

TEST(CheckpointWriter, AShardReadsBackAsItWasFilled) {
  const TempDir directory;
  const std::vector<TensorSpec> specs{{"b", "F32", {2, 3}}, {"a", "BF16", {5}}};
  const FileRecord record = write_filled(directory / "model.safetensors", specs);
  const CheckpointReader reader(directory.path());
  EXPECT_THAT(reader.names(), ElementsAre("a", "b"));
  EXPECT_THAT(reader.tensor("b").shape, ElementsAre(2, 3));
  EXPECT_EQ(bytes_in_file(directory / "model.safetensors", "a"), content("a", 10));
  EXPECT_EQ(bytes_in_file(directory / "model.safetensors", "b"), content("b", 24));
  EXPECT_EQ(record, hash_file(directory / "model.safetensors"));
}

TEST(CheckpointWriter, AnImageUsesNoMoreThanItNeeds) {
  const std::vector<TensorSpec> specs{{"w", "U8", {100}}};
  const uint64_t needed = ShardImage::bytes_needed(specs);
  std::vector<std::byte> memory(needed + 50);
  EXPECT_EQ(ShardImage(memory, specs).bytes().size(), needed);
  EXPECT_THROW(ShardImage(std::span(memory).first(needed - 1), specs), std::invalid_argument);
  EXPECT_THROW(ShardImage(memory, specs).tensor("unknown"), std::out_of_range);
}

TEST(CheckpointWriter, ShardNamesCountFromOne) {
  EXPECT_EQ(shard_name(2, 31), "model-00003-of-00031.safetensors");
}

TEST(CheckpointWriter, CopiesKeepBytesDtypeAndShapeInTheOrderGiven) {
  const TempDir directory;
  constexpr int64_t kLarge = (int64_t{9} << 20) + 77;  // more than two pieces, and unaligned
  write_filled(directory / "model.safetensors",
               {{"small", "U8", {3}}, {"large", "U8", {kLarge}}, {"other", "F32", {7}}});
  const CheckpointReader source(directory.path());
  const auto path = directory / "copy.safetensors";
  const FileRecord record = copy_shard(path, source, {"other", "large"});
  EXPECT_EQ(record, hash_file(path));
  const SafetensorsHeader header = read_safetensors_header(path);
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].name, "other");
  EXPECT_EQ(header.tensors[0].dtype, "F32");
  EXPECT_THAT(header.tensors[0].shape, ElementsAre(7));
  EXPECT_EQ(bytes_in_file(path, "other"), content("other", 28));
  EXPECT_TRUE(bytes_in_file(path, "large") == content("large", kLarge));
}

TEST(CheckpointWriter, CopiesOfUnknownDtypesAreByteForByte) {
  const TempDir directory;
  const std::string header = make_copy_header({{"w", "F4", {6}, 0, 3}});
  write_file(directory / "model.safetensors", header + "xyz");
  copy_shard(directory / "copy", CheckpointReader(directory.path()), {"w"});
  EXPECT_EQ(read_file(directory / "copy"), header + "xyz");
}

TEST(CheckpointWriter, AnInterruptedCopyLeavesNothing) {
  const TempDir directory;
  const auto shard = directory / "model.safetensors";
  write_filled(shard, {{"w", "U8", {100'000}}});
  const CheckpointReader source(directory.path());
  std::filesystem::resize_file(shard, 50'000);  // truncated after its header was read
  EXPECT_THROW(copy_shard(directory / "copy", source, {"w"}), CorruptionError);
  EXPECT_FALSE(std::filesystem::exists(directory / "copy"));
  EXPECT_FALSE(std::filesystem::exists(directory / "copy.tmp"));
}

TEST(CheckpointWriter, TheIndexIsSortedAndReadable) {
  const TempDir directory;
  write_index(directory.path(), {{"b", "y.safetensors"}, {"a", "x.safetensors"}}, 42);
  EXPECT_EQ(read_file(directory / "model.safetensors.index.json"),
            "{\n"
            "  \"metadata\": {\n"
            "    \"total_size\": 42\n"
            "  },\n"
            "  \"weight_map\": {\n"
            "    \"a\": \"x.safetensors\",\n"
            "    \"b\": \"y.safetensors\"\n"
            "  }\n"
            "}\n");
}

TEST(CheckpointWriter, TheDirectoryLoadsOnceTheIndexIsThere) {
  const TempDir directory;
  write_filled(directory / shard_name(0, 2), {{"a", "U8", {3}}});
  write_filled(directory / shard_name(1, 2), {{"b", "U8", {4}}});
  EXPECT_THROW(CheckpointReader(directory.path()), IoError);
  write_index(directory.path(), {{"a", shard_name(0, 2)}, {"b", shard_name(1, 2)}}, 7);
  EXPECT_EQ(CheckpointReader(directory.path()).total_bytes(), 7u);
}

}  // namespace
}  // namespace coppice
