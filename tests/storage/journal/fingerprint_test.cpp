// A fingerprint changes with what it covers, and with nothing else.
#include "storage/journal/fingerprint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "storage/checkpoint/safetensors.h"
#include "storage/errors.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Key;

constexpr size_t kMiB = size_t{1} << 20;

/// A checkpoint of one shard with one tensor, in a directory of its own.
class Checkpoint {
 public:
  explicit Checkpoint(size_t data_bytes) {
    const std::string header =
        make_safetensors_header({{"weight", "U8", {static_cast<int64_t>(data_bytes)}}});
    data_offset_ = header.size();
    std::ofstream(shard(), std::ios::binary) << header << std::string(data_bytes, 'w');
    set_config("{}");
  }

  std::filesystem::path shard() const { return dir_ / "model.safetensors"; }
  void set_config(const std::string& text) const { std::ofstream(dir_ / "config.json") << text; }
  void remove_config() const { std::filesystem::remove(dir_ / "config.json"); }
  void flip_data_byte(size_t offset) const {
    std::fstream file(shard(), std::ios::binary | std::ios::in | std::ios::out);
    file.seekp(static_cast<std::streamoff>(data_offset_ + offset));
    file.put('W');
  }
  Fingerprint fingerprint() const { return fingerprint_checkpoint(CheckpointReader(dir_.path())); }

 private:
  testing::TempDir dir_;
  size_t data_offset_ = 0;
};

TEST(Fingerprint, NamesEveryShardAndTheConfig) {
  const Checkpoint checkpoint(100);
  const Fingerprint fingerprint = checkpoint.fingerprint();
  EXPECT_THAT(fingerprint,
              ElementsAre(Key("model.config.json"), Key("model.shard.model.safetensors")));
  EXPECT_THAT(fingerprint.at("model.shard.model.safetensors"),
              ::testing::MatchesRegex("bytes=[0-9]+,header=[0-9a-f]{16},samples=[0-9a-f]{16}"));
}

TEST(Fingerprint, ShardsOfOneNameInTwoDirectoriesAreTwo) {
  const testing::TempDir dir;
  const auto write_shard = [&](const std::string& directory, const std::string& tensor, char data) {
    std::filesystem::create_directories(dir / directory);
    std::ofstream(dir / directory / "w.safetensors", std::ios::binary)
        << make_safetensors_header({{tensor, "U8", {1}}}) << data;
  };
  write_shard("d0", "a", 'a');
  write_shard("d4", "b", 'b');
  std::ofstream(dir / "config.json") << "{}";
  std::ofstream(dir / "model.safetensors.index.json")
      << R"({"weight_map": {"a": "./d0/w.safetensors", "b": "d4/w.safetensors"}})";
  const auto fingerprint = [&] { return fingerprint_checkpoint(CheckpointReader(dir.path())); };
  const Fingerprint before = fingerprint();
  EXPECT_THAT(before, ElementsAre(Key("model.config.json"), Key("model.shard.d0/w.safetensors"),
                                  Key("model.shard.d4/w.safetensors")));
  write_shard("d0", "a", 'c');
  EXPECT_THAT(differing_keys(before, fingerprint()), ElementsAre("model.shard.d0/w.safetensors"));
}

TEST(Fingerprint, TheSameBytesElsewhereGiveTheSame) {
  EXPECT_EQ(Checkpoint(1000).fingerprint(), Checkpoint(1000).fingerprint());
}

TEST(Fingerprint, ATouchedFileIsTheSameFile) {
  const Checkpoint checkpoint(1000);
  const Fingerprint before = checkpoint.fingerprint();
  std::filesystem::last_write_time(checkpoint.shard(), std::filesystem::file_time_type::min());
  EXPECT_EQ(checkpoint.fingerprint(), before);
}

TEST(Fingerprint, EveryByteOfASmallShardCounts) {
  for (const size_t offset : {size_t{0}, size_t{1}, 3 * kMiB / 2, 3 * kMiB - 1}) {
    const Checkpoint checkpoint(3 * kMiB);
    const Fingerprint before = checkpoint.fingerprint();
    checkpoint.flip_data_byte(offset);
    EXPECT_THAT(differing_keys(before, checkpoint.fingerprint()),
                ElementsAre("model.shard.model.safetensors"))
        << offset;
  }
}

TEST(Fingerprint, SamplesOfALargeShardReachFromItsFirstToItsLastByte) {
  const size_t data_bytes = 40 * kMiB + 12345;
  for (const size_t offset : {size_t{0}, kMiB - 1, data_bytes - kMiB, data_bytes - 1}) {
    const Checkpoint checkpoint(data_bytes);
    const Fingerprint before = checkpoint.fingerprint();
    checkpoint.flip_data_byte(offset);
    EXPECT_NE(checkpoint.fingerprint(), before) << offset;
  }
}

// What is read is bounded: sixteen samples of 40 MiB leave gaps, and this byte lies in one.
TEST(Fingerprint, BetweenTheSamplesOfALargeShardNothingIsRead) {
  const Checkpoint checkpoint(40 * kMiB);
  const Fingerprint before = checkpoint.fingerprint();
  checkpoint.flip_data_byte(2 * kMiB);
  EXPECT_EQ(checkpoint.fingerprint(), before);
}

TEST(Fingerprint, AnotherHeaderOfTheSameLengthDiffers) {
  const Checkpoint checkpoint(1000);
  const Fingerprint before = checkpoint.fingerprint();
  std::fstream file(checkpoint.shard(), std::ios::binary | std::ios::in | std::ios::out);
  std::string header(200, '\0');
  file.read(header.data(), 60);
  file.seekp(static_cast<std::streamoff>(header.find("weight")));
  file << "Weight";
  file.close();
  EXPECT_THAT(differing_keys(before, checkpoint.fingerprint()),
              ElementsAre("model.shard.model.safetensors"));
}

TEST(Fingerprint, AnotherConfigDiffersInItsKeyAlone) {
  const Checkpoint checkpoint(1000);
  const Fingerprint before = checkpoint.fingerprint();
  checkpoint.set_config("{ }");
  EXPECT_THAT(differing_keys(before, checkpoint.fingerprint()), ElementsAre("model.config.json"));
}

TEST(Fingerprint, AnAbsentConfigIsAnIoErrorThatNamesIt) {
  const Checkpoint checkpoint(1000);
  checkpoint.remove_config();
  try {
    checkpoint.fingerprint();
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("config.json"));
  }
}

TEST(Fingerprint, DifferingKeysAreThoseOfEitherSideSorted) {
  const Fingerprint a = {{"changed", "1"}, {"only a", "1"}, {"same", "1"}, {"z", "1"}};
  const Fingerprint b = {{"another", "1"}, {"changed", "2"}, {"same", "1"}, {"z", "2"}};
  EXPECT_THAT(differing_keys(a, b), ElementsAre("another", "changed", "only a", "z"));
  EXPECT_THAT(differing_keys(a, a), IsEmpty());
}

}  // namespace
}  // namespace coppice
