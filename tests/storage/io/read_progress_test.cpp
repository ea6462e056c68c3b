#include "storage/io/read_progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cerrno>
#include <stdexcept>

#include "storage/errors.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::TempDir;

std::string message_of(const std::exception_ptr& failure) {
  try {
    if (failure != nullptr) std::rethrow_exception(failure);
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

/// A file of 10000 bytes and a read of its first 8192, whose answers the test gives.
class ReadProgressTest : public ::testing::Test {
 protected:
  ReadProgressTest() { write_file(directory_ / "file", std::string(10'000, 'x')); }

  Read read_of(const ReadFile& file, uint64_t required_bytes = 8192) {
    return {.file = &file, .offset = 0, .into = memory_, .required_bytes = required_bytes};
  }

  TempDir directory_;
  std::array<std::byte, 8192> memory_;
};

TEST_F(ReadProgressTest, AFullAnswerIsTheEnd) {
  const ReadFile file(directory_ / "file");
  ReadProgress progress(read_of(file));
  EXPECT_EQ(progress.into().size(), 8192u);
  progress.take(8192);
  EXPECT_TRUE(progress.done());
  EXPECT_EQ(progress.take_failure(), nullptr);
}

TEST_F(ReadProgressTest, AShortBufferedReadGoesOnAtTheFirstMissingByte) {
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  ReadProgress progress(read_of(file));
  progress.take(5000);
  ASSERT_FALSE(progress.done());
  EXPECT_EQ(progress.offset(), 5000u);
  EXPECT_EQ(progress.into().data(), memory_.data() + 5000);
  EXPECT_EQ(progress.into().size(), 3192u);
}

TEST_F(ReadProgressTest, AShortDirectReadGoesOnAtTheAlignedPositionBelow) {
  const ReadFile file(directory_ / "file");
  if (!file.is_direct()) GTEST_SKIP() << "no O_DIRECT in " << directory_.path();
  ReadProgress progress(read_of(file));
  const uint64_t below = 5000 - 5000 % file.alignment();
  progress.take(5000);
  EXPECT_EQ(progress.offset(), below);
  EXPECT_EQ(progress.into().data(), memory_.data() + below);
  progress.take(static_cast<int64_t>(8192 - below));
  EXPECT_TRUE(progress.done());
  EXPECT_EQ(progress.take_failure(), nullptr);
}

TEST_F(ReadProgressTest, InterruptedRequestsAreMadeAgain) {
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  ReadProgress progress(read_of(file));
  progress.take(100);
  for (const int again : {EINTR, EAGAIN}) {
    progress.take(-again);
    EXPECT_FALSE(progress.done());
    EXPECT_EQ(progress.offset(), 100u);
  }
}

TEST_F(ReadProgressTest, NothingBeforeTheRequiredEndIsATruncatedFile) {
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  ReadProgress progress(read_of(file));
  progress.take(5000);
  progress.take(0);
  ASSERT_TRUE(progress.done());
  const std::exception_ptr failure = progress.take_failure();
  EXPECT_THROW(std::rethrow_exception(failure), CorruptionError);
  EXPECT_THAT(message_of(failure), AllOf(HasSubstr(file.path().string()), HasSubstr("byte 5000"),
                                         HasSubstr("expected 8192 bytes from offset 0"),
                                         HasSubstr("found 5000 bytes"), HasSubstr("truncated")));
}

TEST_F(ReadProgressTest, HearingOnlyOfBytesAlreadyHereIsATruncatedFile) {
  const ReadFile file(directory_ / "file");
  if (!file.is_direct()) GTEST_SKIP() << "no O_DIRECT in " << directory_.path();
  ReadProgress progress(read_of(file));
  progress.take(5000);
  progress.take(5000 % file.alignment());  // the same last block, from its start
  ASSERT_TRUE(progress.done());
  EXPECT_THROW(std::rethrow_exception(progress.take_failure()), CorruptionError);
}

TEST_F(ReadProgressTest, LessThanAskedIsEnoughAtTheEndOfTheFile) {
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  ReadProgress progress({.file = &file, .offset = 4000, .into = memory_, .required_bytes = 6000});
  progress.take(6000);  // the file's size is known: no further request
  EXPECT_TRUE(progress.done());
  EXPECT_EQ(progress.take_failure(), nullptr);
}

TEST_F(ReadProgressTest, EnoughIsNotTheEndWhereTheFileGoesOn) {
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  ReadProgress progress(read_of(file, 10));
  progress.take(4096);
  EXPECT_FALSE(progress.done());
}

TEST_F(ReadProgressTest, DeviceErrorsCarryPathOffsetBytesAndErrno) {
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  ReadProgress progress(read_of(file));
  progress.take(5000);
  progress.take(-EIO);
  ASSERT_TRUE(progress.done());
  const std::exception_ptr failure = progress.take_failure();
  EXPECT_THROW(std::rethrow_exception(failure), IoError);
  EXPECT_THAT(message_of(failure), AllOf(HasSubstr(file.path().string()),
                                         HasSubstr("3192 bytes at offset 5000"), HasSubstr("EIO")));
}

TEST_F(ReadProgressTest, AnUnalignedDirectReadIsToldTheAlignment) {
  const ReadFile file(directory_ / "file");
  if (!file.is_direct()) GTEST_SKIP() << "no O_DIRECT in " << directory_.path();
  ReadProgress progress(read_of(file));
  progress.take(-EINVAL);
  EXPECT_THAT(message_of(progress.take_failure()),
              HasSubstr("multiples of " + std::to_string(file.alignment())));
}

TEST_F(ReadProgressTest, BlockingReadsHoldTheFilesBytes) {
  const ReadFile file(directory_ / "file", ReadFile::Direct::kNever);
  read_blocking(read_of(file));
  EXPECT_EQ(memory_.back(), std::byte{'x'});
  const Read beyond{.file = &file, .offset = 9000, .into = memory_, .required_bytes = 1001};
  EXPECT_THROW(read_blocking(beyond), CorruptionError);
}

}  // namespace
}  // namespace coppice
