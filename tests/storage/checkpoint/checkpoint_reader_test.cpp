#include "storage/checkpoint/checkpoint_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "storage/checkpoint/checkpoint_writer.h"
#include "storage/errors.h"
#include "storage/io/read_progress.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;

/// A shard of U8 tensors, each filled with the first letter of its name.
void write_letters(const std::filesystem::path& path,
                   const std::vector<std::pair<std::string, int64_t>>& sizes) {
  std::vector<TensorSpec> specs;
  for (const auto& [name, bytes] : sizes) specs.push_back({name, "U8", {bytes}});
  std::vector<std::byte> memory(ShardImage::bytes_needed(specs));
  const ShardImage image(memory, specs);
  for (const auto& [name, bytes] : sizes) {
    std::ranges::fill(image.tensor(name), static_cast<std::byte>(name[0]));
  }
  write_shard(path, image.bytes());
}

std::string letters_at(const CheckpointReader& reader, const std::string& name) {
  const Extent extent = reader.extent(name);
  const ReadFile file(reader.files()[extent.file]->path(), ReadFile::Direct::kNever);
  std::string text(extent.bytes, '\0');
  read_blocking({.file = &file,
                 .offset = extent.offset,
                 .into = std::as_writable_bytes(std::span(text)),
                 .required_bytes = text.size()});
  return text;
}

template <class Error>
std::string complaint(const std::filesystem::path& directory) {
  try {
    CheckpointReader reader(directory);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

class CheckpointReaderTest : public ::testing::Test {
 protected:
  CheckpointReaderTest() {
    write_letters(directory_ / "one.safetensors", {{"a", 3}, {"b", 5}});
    write_letters(directory_ / "two.safetensors", {{"c", 4}});
  }
  void index(const std::map<std::string, std::string>& shard_of_tensor) {
    write_index(directory_.path(), shard_of_tensor, 0);
  }
  void raw_index(std::string_view json) {
    write_file(directory_ / "model.safetensors.index.json", json);
  }

  TempDir directory_;
};

TEST_F(CheckpointReaderTest, ShardsAreOneTable) {
  index({{"a", "one.safetensors"}, {"b", "one.safetensors"}, {"c", "two.safetensors"}});
  const CheckpointReader reader(directory_.path());
  EXPECT_THAT(reader.names(), ElementsAre("a", "b", "c"));
  EXPECT_EQ(reader.total_bytes(), 12u);
  EXPECT_EQ(reader.index_path(), directory_ / "model.safetensors.index.json");
  EXPECT_EQ(reader.headers().size(), 2u);
  EXPECT_EQ(reader.file_bytes()[1], std::filesystem::file_size(directory_ / "two.safetensors"));
  EXPECT_EQ(reader.tensor("b").bytes, 5u);
  EXPECT_EQ(letters_at(reader, "a"), "aaa");
  EXPECT_EQ(letters_at(reader, "b"), "bbbbb");
  EXPECT_EQ(letters_at(reader, "c"), "cccc");
}

TEST_F(CheckpointReaderTest, ASingleFileNeedsNoIndex) {
  write_letters(directory_ / "model.safetensors", {{"x", 2}});
  const CheckpointReader reader(directory_.path());
  EXPECT_THAT(reader.names(), ElementsAre("x"));
  EXPECT_EQ(reader.index_path(), directory_ / "model.safetensors");
  EXPECT_EQ(letters_at(reader, "x"), "xx");
}

TEST_F(CheckpointReaderTest, TensorsTheIndexForgetsAreTakenAlong) {
  index({{"a", "one.safetensors"}});
  EXPECT_TRUE(CheckpointReader(directory_.path()).has("b"));
}

TEST_F(CheckpointReaderTest, ShardsMayBeLinksOutOfTheDirectory) {
  const TempDir elsewhere;
  write_letters(elsewhere / "blob", {{"d", 1}});
  std::filesystem::create_symlink(elsewhere / "blob", directory_ / "three.safetensors");
  index({{"d", "three.safetensors"}});
  EXPECT_EQ(letters_at(CheckpointReader(directory_.path()), "d"), "d");
}

TEST_F(CheckpointReaderTest, AnAbsentDirectoryOrAnEmptyOneIsAnIoError) {
  EXPECT_THAT(complaint<IoError>(directory_ / "absent"), HasSubstr("absent"));
  EXPECT_THAT(complaint<IoError>(directory_.path()),
              AllOf(HasSubstr("model.safetensors.index.json or model.safetensors"),
                    HasSubstr(directory_.path().string())));
}

TEST_F(CheckpointReaderTest, AnAbsentShardIsNamedWithTheTensorThatWantsIt) {
  index({{"a", "one.safetensors"}, {"q", "gone.safetensors"}});
  EXPECT_THAT(complaint<IoError>(directory_.path()),
              AllOf(HasSubstr("gone.safetensors"), HasSubstr("tensor 'q'"),
                    HasSubstr("model.safetensors.index.json")));
}

TEST_F(CheckpointReaderTest, ATensorTheShardDoesNotHaveIsACorruption) {
  index({{"a", "one.safetensors"}, {"q", "two.safetensors"}});
  EXPECT_THAT(complaint<CorruptionError>(directory_.path()),
              AllOf(HasSubstr("tensor 'q'"), HasSubstr("two.safetensors")));
}

TEST_F(CheckpointReaderTest, ATensorInAnotherShardThanPromisedIsACorruption) {
  index({{"a", "two.safetensors"}, {"b", "one.safetensors"}});
  EXPECT_THAT(complaint<CorruptionError>(directory_.path()),
              AllOf(HasSubstr("tensor 'a'"), HasSubstr("two.safetensors"), HasSubstr("found it in"),
                    HasSubstr("one.safetensors")));
}

TEST_F(CheckpointReaderTest, ATensorInTwoShardsIsACorruption) {
  write_letters(directory_ / "two.safetensors", {{"a", 3}, {"c", 4}});
  index({{"a", "one.safetensors"}, {"c", "two.safetensors"}});
  EXPECT_THAT(complaint<CorruptionError>(directory_.path()), HasSubstr("'a' also in"));
}

TEST_F(CheckpointReaderTest, ATruncatedShardIsACorruption) {
  index({{"a", "one.safetensors"}});
  const auto shard = directory_ / "one.safetensors";
  std::filesystem::resize_file(shard, std::filesystem::file_size(shard) - 1);
  EXPECT_THAT(complaint<CorruptionError>(directory_.path()),
              AllOf(HasSubstr("one.safetensors"), HasSubstr("'b'")));
}

TEST_F(CheckpointReaderTest, ShardNamesThatLeaveTheDirectoryAreRefused) {
  for (const std::string name :
       {"../one.safetensors", "/etc/passwd", "sub/../../x", "", ".", "..", "sub/"}) {
    index({{"a", name}});
    EXPECT_THAT(complaint<CorruptionError>(directory_.path()), HasSubstr("below the directory"))
        << name;
  }
}

TEST_F(CheckpointReaderTest, AnIndexThatContradictsItselfIsRefused) {
  for (const std::string_view json :
       {"", "[]", "{}", R"({"weight_map":[]})", R"({"weight_map":{"a":1}})",
        R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})"}) {
    raw_index(json);
    EXPECT_THAT(complaint<CorruptionError>(directory_.path()), HasSubstr("index.json")) << json;
  }
}

TEST_F(CheckpointReaderTest, AnUnknownTensorIsNamedWithTheDirectory) {
  index({{"a", "one.safetensors"}});
  const CheckpointReader reader(directory_.path());
  EXPECT_FALSE(reader.has("nothing"));
  EXPECT_THROW(reader.extent("nothing"), CorruptionError);
  try {
    reader.tensor("nothing");
  } catch (const CorruptionError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("'nothing'"), HasSubstr(directory_.path().string())));
  }
}

}  // namespace
}  // namespace coppice
