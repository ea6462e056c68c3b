#include "storage/io/file_writer.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <random>

#include "storage/errors.h"
#include "storage/io/aligned_buffer.h"
#include "storage/io/file.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::TempDir;

constexpr size_t kMiB = size_t{1} << 20;

AlignedBuffer pattern(size_t bytes) {
  AlignedBuffer memory(bytes);
  for (size_t i = 0; i < bytes; ++i) {
    memory.data()[i] = static_cast<std::byte>(i * 31 + i / 4096 * 7);
  }
  return memory;
}

UniqueFd open_new(const std::filesystem::path& path) {
  return UniqueFd(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644));
}

bool holds(const std::filesystem::path& path, std::span<const std::byte> bytes) {
  const std::string text = read_file(path);
  return std::ranges::equal(std::as_bytes(std::span(text)), bytes);
}

/// `expected_bytes`: few make the file buffered, many make it direct where the file system does it.
class FileWriterTest : public ::testing::TestWithParam<uint64_t> {};

TEST_P(FileWriterTest, BytesOfAnySizeAndAddressArriveInOrder) {
  const TempDir directory;
  const AlignedBuffer memory = pattern(13 * kMiB);
  for (uint32_t seed = 0; seed < 8; ++seed) {
    std::mt19937_64 random(seed);
    const UniqueFd fd = open_new(directory / "out");
    FileWriter writer(fd.get(), directory / "out", GetParam());
    size_t done = 0;
    while (done < memory.bytes()) {
      // Small and large, of whole blocks and not.
      const size_t most = std::min<size_t>(memory.bytes() - done, size_t{1} << (random() % 24));
      size_t bytes = 1 + random() % most;
      if (random() % 2 == 0 && bytes > 4096) bytes -= bytes % 4096;
      writer.append(memory.span().subspan(done, bytes));
      done += bytes;
      ASSERT_EQ(writer.bytes(), done);
    }
    writer.flush();
    ASSERT_TRUE(holds(directory / "out", memory.span())) << seed;
  }
}

TEST_P(FileWriterTest, ATailOfAnyLengthIsWrittenExactly) {
  const TempDir directory;
  const AlignedBuffer memory = pattern(2 * kMiB + 8192);
  for (const size_t tail : {0, 1, 511, 512, 4095, 4096, 4097}) {
    const UniqueFd fd = open_new(directory / "out");
    FileWriter writer(fd.get(), directory / "out", GetParam());
    writer.append(memory.span().first(2 * kMiB + tail));
    writer.flush();
    EXPECT_TRUE(holds(directory / "out", memory.span().first(2 * kMiB + tail))) << tail;
  }
}

TEST_P(FileWriterTest, NothingIsAFileOfNoBytes) {
  const TempDir directory;
  const UniqueFd fd = open_new(directory / "out");
  FileWriter writer(fd.get(), directory / "out", GetParam());
  writer.append({});
  writer.flush();
  EXPECT_EQ(std::filesystem::file_size(directory / "out"), 0u);
}

// RLIMIT_FSIZE makes the kernel write short, here in the middle of a block, and then refuse.
TEST_P(FileWriterTest, AShortWriteGoesOnAtTheFirstMissingByte) {
  const TempDir directory;
  const AlignedBuffer memory = pattern(8 * kMiB);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  for (const size_t unaligned : {0, 1}) {
    const UniqueFd fd = open_new(directory / "out");
    const rlimit limit{kMiB + 6000, old_limit.rlim_max};
    std::string message;
    setrlimit(RLIMIT_FSIZE, &limit);
    try {
      FileWriter writer(fd.get(), directory / "out", GetParam());
      writer.append(memory.span().subspan(unaligned));
      writer.flush();
    } catch (const IoError& error) {
      message = error.what();
    }
    setrlimit(RLIMIT_FSIZE, &old_limit);
    EXPECT_THAT(message, AllOf(HasSubstr("at offset 1054576"), HasSubstr("EFBIG")));
    EXPECT_TRUE(holds(directory / "out", memory.span().subspan(unaligned, kMiB + 6000)));
  }
  std::signal(SIGXFSZ, old_handler);
}

TEST_P(FileWriterTest, ATmpfsGetsTheSameBytes) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  const std::filesystem::path path = "/dev/shm/coppice_writer_test." + std::to_string(getpid());
  const AlignedBuffer memory = pattern(6 * kMiB + 77);
  const UniqueFd fd = open_new(path);
  FileWriter writer(fd.get(), path, GetParam());
  writer.append(memory.span().first(5));
  writer.append(memory.span().subspan(5));
  writer.flush();
  EXPECT_TRUE(holds(path, memory.span()));
  std::filesystem::remove(path);
}

INSTANTIATE_TEST_SUITE_P(Expected, FileWriterTest, ::testing::Values(0, 13 * kMiB, 3 * kMiB + 5),
                         [](const auto& bytes) { return std::to_string(bytes.param) + "Bytes"; });

TEST(FileWriter, AFullDeviceIsAnErrorWithAdvice) {
  const UniqueFd fd(open("/dev/full", O_WRONLY | O_CLOEXEC));
  FileWriter writer(fd.get(), "/dev/full", 0);
  const AlignedBuffer memory = pattern(4096);
  try {
    writer.append(memory.span());
    FAIL() << "/dev/full took bytes";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), ENOSPC);
    EXPECT_THAT(error.what(), HasSubstr("free some space"));
  }
}

}  // namespace
}  // namespace coppice
