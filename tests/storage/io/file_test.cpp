#include "storage/io/file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fstream>
#include <utility>
#include <vector>

#include "storage/errors.h"
#include "storage/io/aligned_buffer.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TempDir;

std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

void append_text(StagedFile& file, std::string_view text) {
  file.append(std::as_bytes(std::span(text)));
}

template <class Body>
IoError io_error_of(Body body) {
  try {
    body();
  } catch (const IoError& error) {
    return error;
  }
  throw std::logic_error("no IoError was thrown");
}

int syncs_to_fail = 0;
int num_syncs = 0;

/// The next sync of data fails with EIO, those after it succeed.
class BrokenSync {
 public:
  BrokenSync() {
    syncs_to_fail = 1;
    num_syncs = 0;
  }
  ~BrokenSync() { syncs_to_fail = 0; }
  BrokenSync(const BrokenSync&) = delete;
  BrokenSync& operator=(const BrokenSync&) = delete;
  static int num_calls() { return num_syncs; }
};

TEST(UniqueFd, ClosesOnceWhenTheLastOwnerGoes) {
  int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  {
    UniqueFd first(fd);
    UniqueFd second(std::move(first));
    EXPECT_EQ(first.get(), -1);  // NOLINT: a moved-from owner owns nothing
    EXPECT_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
  }
  EXPECT_EQ(fcntl(fd, F_GETFD), -1);
}

TEST(ReadFile, AbsentFilesAreNamed) {
  const TempDir directory;
  const std::string path = (directory / "absent").string();
  const IoError error = io_error_of([&] { ReadFile file(path); });
  EXPECT_EQ(error.path(), path);
  EXPECT_EQ(error.error_number(), ENOENT);
  EXPECT_THAT(error.what(), AllOf(HasSubstr(path), HasSubstr("ENOENT")));
}

TEST(ReadFile, DirectoriesAreRefused) {
  const TempDir directory;
  EXPECT_EQ(io_error_of([&] { ReadFile file(directory.path()); }).error_number(), EISDIR);
}

TEST(ReadFile, NeverDirectIsBuffered) {
  const TempDir directory;
  write_file(directory / "file", "12345");
  const ReadFile file(directory / "file", ReadFile::Direct::kNever);
  EXPECT_EQ(file.alignment(), 1u);
  EXPECT_FALSE(file.is_direct());
  EXPECT_EQ(file.bytes(), 5u);
}

TEST(ReadFile, AlignedReadsSucceedAtItsAlignment) {
  const TempDir directory;
  write_file(directory / "file", std::string(100'000, 'x'));
  const ReadFile file(directory / "file");
  if (!file.is_direct()) GTEST_SKIP() << "no O_DIRECT in " << directory.path();
  const AlignedBuffer buffer(size_t{2} * file.alignment());
  EXPECT_EQ(pread(file.fd(), buffer.data(), file.alignment(), file.alignment()), file.alignment());
}

TEST(ReadFile, IsBufferedOnATmpfs) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  const std::filesystem::path path = "/dev/shm/coppice_file_test." + std::to_string(getpid());
  write_file(path, "on a tmpfs");
  const ReadFile file(path);
  std::filesystem::remove(path);
  EXPECT_EQ(file.alignment(), 1u);
  std::string text(6, '\0');
  EXPECT_EQ(pread(file.fd(), text.data(), text.size(), 3), 6);
  EXPECT_EQ(text, "a tmpf");
}

TEST(StagedFile, IsInvisibleUntilPublished) {
  const TempDir directory;
  StagedFile file(directory / "out", 3);
  append_text(file, "abc");
  EXPECT_THAT(names_in(directory.path()), ElementsAre("out.tmp"));
  const FileRecord record = file.publish();
  EXPECT_THAT(names_in(directory.path()), ElementsAre("out"));
  EXPECT_EQ(record, (FileRecord{"out", 3, hash_file(directory / "out").xxh3_128}));
}

TEST(StagedFile, LeavesNothingBehindUnpublished) {
  const TempDir directory;
  {
    StagedFile file(directory / "out", 1'000'000);
    append_text(file, "abc");
  }
  EXPECT_THAT(names_in(directory.path()), IsEmpty());
}

TEST(StagedFile, ReservesTheBytesExpectedAndGivesTheRestBack) {
  const TempDir directory;
  StagedFile file(directory / "out", 1 << 20);
  EXPECT_EQ(std::filesystem::file_size(directory / "out.tmp"), uint64_t{1} << 20);
  append_text(file, "short");
  EXPECT_EQ(file.publish().bytes, 5u);
  EXPECT_EQ(read_file(directory / "out"), "short");
}

TEST(StagedFile, MayGrowBeyondTheBytesExpected) {
  const TempDir directory;
  StagedFile file(directory / "out", 2);
  append_text(file, "longer");
  file.publish();
  EXPECT_EQ(read_file(directory / "out"), "longer");
}

TEST(StagedFile, ReplacesAStaleTemporaryAndAnOlderFile) {
  const TempDir directory;
  std::ofstream(directory / "out.tmp") << "left behind by a run that was killed";
  std::ofstream(directory / "out") << "old";
  write_file(directory / "out", "new");
  EXPECT_THAT(names_in(directory.path()), ElementsAre("out"));
  EXPECT_EQ(read_file(directory / "out"), "new");
}

TEST(StagedFile, AbsentDirectoriesAreNamed) {
  const TempDir directory;
  EXPECT_EQ(io_error_of([&] { StagedFile file(directory / "no" / "out", 0); }).error_number(),
            ENOENT);
}

TEST(StagedFile, ALargeFileIsTheSameFromMemoryOfAnyAlignment) {
  const TempDir directory;
  const AlignedBuffer memory(size_t{9} << 20);
  for (size_t i = 0; i < memory.bytes(); ++i) {
    memory.data()[i] = static_cast<std::byte>(i * 31 + i / 4096 * 7);
  }
  for (const size_t skipped : {0, 1, 4096}) {
    const auto bytes = memory.span().subspan(skipped).first((size_t{8} << 20) + 1234);
    StagedFile file(directory / "out", bytes.size());
    file.append(bytes);
    const FileRecord record = file.publish();
    EXPECT_EQ(record, hash_file(directory / "out")) << skipped;
    const std::string text = read_file(directory / "out");
    EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(text)), bytes)) << skipped;
  }
}

// Linux marks the pages clean whatever it answered: a second sync would succeed and mean nothing.
TEST(StagedFile, ASyncThatFailsIsNotTriedAgain) {
  const TempDir directory;
  const BrokenSync once;
  EXPECT_EQ(io_error_of([&] { write_file(directory / "out", "never on the disk"); }).error_number(),
            EIO);
  EXPECT_EQ(once.num_calls(), 1);
  EXPECT_THAT(names_in(directory.path()), IsEmpty());
}

// RLIMIT_FSIZE makes the kernel write short and then refuse, without root.
TEST(StagedFile, ShortWritesGoOnAtTheFirstMissingByte) {
  const TempDir directory;
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old_limit{};
  getrlimit(RLIMIT_FSIZE, &old_limit);
  const rlimit limit{6000, old_limit.rlim_max};
  std::string message;
  std::vector<std::string> left;
  setrlimit(RLIMIT_FSIZE, &limit);
  try {
    StagedFile file(directory / "out", 0);
    append_text(file, std::string(10'000, 'x'));
  } catch (const IoError& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  EXPECT_THAT(message, AllOf(HasSubstr("4000 bytes at offset 6000"), HasSubstr("EFBIG")));
  EXPECT_THAT(names_in(directory.path()), IsEmpty());
}

/// A tmpfs of 64 KiB, gone at the end of the test.
class SmallFileSystem {
 public:
  SmallFileSystem() {
    mounted_ = mount("none", directory_.path().c_str(), "tmpfs", 0, "size=64k") == 0;
  }
  ~SmallFileSystem() {
    if (mounted_) umount2(directory_.path().c_str(), MNT_DETACH);
  }
  bool mounted() const { return mounted_; }
  std::filesystem::path path() const { return directory_.path(); }

 private:
  TempDir directory_;
  bool mounted_ = false;
};

TEST(StagedFile, AFullDiskIsFoundBeforeTheWork) {
  const SmallFileSystem disk;
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs needs root";
  const IoError error = io_error_of([&] { StagedFile file(disk.path() / "out", 1 << 20); });
  EXPECT_EQ(error.error_number(), ENOSPC);
  EXPECT_THAT(error.what(),
              AllOf(HasSubstr("1048576 bytes needed, 65536 free"), HasSubstr("out.tmp"),
                    HasSubstr("free some space or choose another --output-dir")));
  EXPECT_THAT(names_in(disk.path()), IsEmpty());
}

TEST(StagedFile, ADiskThatFillsUpLeavesWhatWasThere) {
  const SmallFileSystem disk;
  if (!disk.mounted()) GTEST_SKIP() << "mounting a tmpfs needs root";
  write_file(disk.path() / "out", "before");
  const IoError error = io_error_of([&] {
    StagedFile file(disk.path() / "out", 0);
    append_text(file, std::string(100'000, 'x'));
  });
  EXPECT_EQ(error.error_number(), ENOSPC);
  EXPECT_THAT(names_in(disk.path()), ElementsAre("out"));
  EXPECT_EQ(read_file(disk.path() / "out"), "before");
}

TEST(PublishFile, RenamesWhatAnotherLibraryWroteAndTellsItsSize) {
  const TempDir directory;
  std::ofstream(directory / "cache.h5.tmp") << "not really HDF5";
  EXPECT_EQ(publish_file(directory / "cache.h5.tmp", directory / "cache.h5"), 15u);
  EXPECT_THAT(names_in(directory.path()), ElementsAre("cache.h5"));
  EXPECT_EQ(read_file(directory / "cache.h5"), "not really HDF5");
}

TEST(PublishFile, ASyncThatFailsIsNotTriedAgain) {
  const TempDir directory;
  std::ofstream(directory / "out.tmp") << "never on the disk";
  const BrokenSync once;
  EXPECT_EQ(
      io_error_of([&] { publish_file(directory / "out.tmp", directory / "out"); }).error_number(),
      EIO);
  EXPECT_EQ(once.num_calls(), 1);
  EXPECT_THAT(names_in(directory.path()), ElementsAre("out.tmp"));
}

TEST(HashFile, CoversEveryPieceOfTheFile) {
  const TempDir directory;
  std::string text(3'000'000, 'a');
  const FileRecord before = write_file(directory / "file", text);
  EXPECT_EQ(hash_file(directory / "file"), before);
  EXPECT_EQ(before.name, "file");
  EXPECT_EQ(before.bytes, text.size());
  text.back() = 'b';
  EXPECT_NE(write_file(directory / "file", text).xxh3_128, before.xxh3_128);
}

TEST(HashFile, Sha256IsThePublishedOne) {
  const TempDir directory;
  write_file(directory / "abc", "abc");
  EXPECT_EQ(sha256_file(directory / "abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(HashFile, AbsentFilesAreIoErrors) {
  const TempDir directory;
  EXPECT_THROW(hash_file(directory / "absent"), IoError);
  EXPECT_THROW(sha256_file(directory / "absent"), IoError);
  EXPECT_THROW(read_file(directory / "absent"), IoError);
  EXPECT_THROW(read_file(directory.path()), IoError);
  EXPECT_THROW(sync_directory(directory / "absent"), IoError);
}

}  // namespace
}  // namespace coppice

// In place of the C library's, for this program.
extern "C" int fdatasync(int fd) {
  ++coppice::num_syncs;
  if (coppice::syncs_to_fail-- > 0) {
    errno = EIO;
    return -1;
  }
  return static_cast<int>(syscall(SYS_fdatasync, fd));
}
