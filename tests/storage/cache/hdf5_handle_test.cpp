// HDF5's refusals become exceptions that say why, and an unfinished file leaves no trace.
#include "storage/cache/hdf5_handle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cerrno>
#include <csignal>
#include <fstream>
#include <utility>

#include "storage/errors.h"
#include "storage/io/file.h"  // write_file
#include "tests/support/small_disk.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using testing::exit_status_of;
using testing::exit_status_on_a_small_disk;
using testing::fill;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::kNotAllowed;
using ::testing::Not;

std::vector<std::string> names_in(const std::filesystem::path& directory) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory)) {
    names.push_back(entry.path().filename());
  }
  return names;
}

ssize_t open_hdf5_objects() {
  return H5Fget_obj_count(static_cast<hid_t>(H5F_OBJ_ALL), H5F_OBJ_ALL);
}

int closed = 0;
herr_t count_close(hid_t) {
  ++closed;
  return 0;
}

TEST(Hdf5Handle, ClosesOnceWhereverItIsMoved) {
  closed = 0;
  {
    Hdf5Handle first(7, count_close);
    Hdf5Handle second(std::move(first));
    Hdf5Handle third;
    third = std::move(second);
    EXPECT_EQ(third.get(), 7);
    EXPECT_EQ(closed, 0);
  }
  EXPECT_EQ(closed, 1);
}

TEST(Hdf5Handle, ClosingTwiceClosesOnce) {
  closed = 0;
  Hdf5Handle handle(7, count_close);
  handle.close();
  EXPECT_EQ(handle.close(), 0);
  EXPECT_EQ(closed, 1);
}

TEST(Hdf5Handle, ReadingWhatIsNoHdf5IsCorruptionWithHdf5sOwnReason) {
  const testing::TempDir dir;
  write_file(dir / "text.h5", "not HDF5 at all");
  try {
    const Hdf5Handle file = Hdf5Calls(dir / "text.h5", Hdf5Access::kRead).open_file();
    FAIL() << "opened";
  } catch (const CorruptionError& error) {
    EXPECT_THAT(error.what(), HasSubstr("text.h5"));
    EXPECT_THAT(error.what(), HasSubstr("HDF5: file signature not found"));
  }
}

TEST(Hdf5Handle, AnErrnoInHdf5sReasonMakesAnIoError) {
  const testing::TempDir dir;
  try {
    const Hdf5StagedFile file(dir / "absent" / "x.h5");
    FAIL() << "created";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), ENOENT);
    EXPECT_THAT(error.what(), HasSubstr("absent/x.h5.tmp"));
    EXPECT_THAT(error.what(), Not(HasSubstr("\n")));
  }
  EXPECT_THROW(Hdf5Calls(dir / "absent.h5", Hdf5Access::kRead).open_file(), IoError);
}

TEST(Hdf5Handle, AnotherNumberOfElementsThanWantedIsCorruption) {
  const testing::TempDir dir;
  Hdf5StagedFile staged(dir / "x.h5");
  const int32_t written[3] = {1, 2, 3};
  staged.calls().write_attribute(staged.id(), "numbers", H5T_NATIVE_INT32, {3}, written);
  staged.publish();

  const Hdf5Calls hdf5(dir / "x.h5", Hdf5Access::kRead);
  const Hdf5Handle file = hdf5.open_file();
  int32_t found[3] = {};
  EXPECT_THROW(hdf5.read_attribute(file.get(), "numbers", H5T_NATIVE_INT32, 2, found),
               CorruptionError);
  EXPECT_THROW(hdf5.read_attribute(file.get(), "letters", H5T_NATIVE_INT32, 3, found),
               CorruptionError);
  hdf5.read_attribute(file.get(), "numbers", H5T_NATIVE_INT32, 3, found);
  EXPECT_THAT(found, ElementsAre(1, 2, 3));
}

TEST(Hdf5Handle, TextComesBackUpToItsLimit) {
  const testing::TempDir dir;
  Hdf5StagedFile staged(dir / "x.h5");
  staged.calls().write_text(staged.id(), "short", "BF16");
  staged.calls().write_text(staged.id(), "long", std::string(100, 'x'));
  staged.publish();

  const Hdf5Calls hdf5(dir / "x.h5", Hdf5Access::kRead);
  const Hdf5Handle file = hdf5.open_file();
  EXPECT_EQ(hdf5.read_text(file.get(), "short"), "BF16");
  EXPECT_EQ(hdf5.read_text(file.get(), "long"), std::string(63, 'x'));
}

TEST(Hdf5Handle, AStagedFileExistsOncePublished) {
  const testing::TempDir dir;
  Hdf5StagedFile file(dir / "x.h5");
  EXPECT_THAT(names_in(dir.path()), ElementsAre("x.h5.tmp"));
  const uint64_t bytes = file.publish();
  EXPECT_THAT(names_in(dir.path()), ElementsAre("x.h5"));
  EXPECT_EQ(bytes, std::filesystem::file_size(dir / "x.h5"));
}

TEST(Hdf5Handle, AnUnpublishedFileLeavesNothing) {
  const testing::TempDir dir;
  { const Hdf5StagedFile file(dir / "x.h5"); }
  EXPECT_THAT(names_in(dir.path()), IsEmpty());
  EXPECT_EQ(open_hdf5_objects(), 0);
}

TEST(Hdf5Handle, AStaleTmpFileIsReplaced) {
  const testing::TempDir dir;
  write_file(dir / "x.h5.tmp", "left by a process that was killed");
  Hdf5StagedFile(dir / "x.h5").publish();
  EXPECT_GE(Hdf5Calls(dir / "x.h5", Hdf5Access::kRead).open_file().get(), 0);
}

/// Writes a dataset of `bytes` and publishes it.
void write_bytes(const std::filesystem::path& path, size_t bytes) {
  Hdf5StagedFile file(path);
  const Hdf5Calls& hdf5 = file.calls();
  const Hdf5Handle space = hdf5.make_space({bytes});
  const Hdf5Handle dataset = hdf5.own(H5Dcreate2(file.id(), "/bytes", H5T_NATIVE_UINT8, space.get(),
                                                 H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT),
                                      H5Dclose, "dataset /bytes");
  const std::vector<uint8_t> values(bytes, 1);
  hdf5.check(
      H5Dwrite(dataset.get(), H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()),
      "dataset /bytes");
  file.publish();
}

/// 0 if writing met ENOSPC, left nothing behind, and HDF5 still works afterwards.
int fill_and_go_on(const std::filesystem::path& directory) {
  try {
    write_bytes(directory / "x.h5", size_t{4} << 20);
    return 1;
  } catch (const IoError& error) {
    if (error.error_number() != ENOSPC) return 2;
  }
  if (!names_in(directory).empty()) return 3;
  if (open_hdf5_objects() != 0) return 4;
  write_bytes(directory / "small.h5", 100);
  return 0;
}

bool is_refused_for_space(Hdf5StagedFile& file, uint64_t bytes) {
  try {
    file.reserve(bytes);
  } catch (const IoError& error) {
    return error.error_number() == ENOSPC;
  }
  return false;
}

TEST(Hdf5Handle, AFullDiskIsAnIoErrorThatLeavesNothingBehind) {
  const testing::TempDir dir;
  const int status =
      exit_status_on_a_small_disk(dir.path(), [&] { return fill_and_go_on(dir.path()); });
  if (status == kNotAllowed) GTEST_SKIP() << "mounting a small file system is not allowed here";
  EXPECT_EQ(status, 0);
}

TEST(Hdf5Handle, WhatWasReservedIsThereOnADiskThatFilledUp) {
  const testing::TempDir dir;
  const int status = exit_status_on_a_small_disk(dir.path(), [&] {
    Hdf5StagedFile file(dir / "x.h5");
    if (!is_refused_for_space(file, uint64_t{2} << 20)) return 1;
    file.reserve(300'000);
    fill(dir.path());
    // Not by another reserve(): a refused one gives back what was held.
    if (std::ofstream(dir / "more") << 'x' << std::flush) return 2;
    file.calls().write_text(file.id(), "name", std::string(40'000, 'a'));
    return file.publish() > 40'000 ? 0 : 3;
  });
  if (status == kNotAllowed) GTEST_SKIP() << "mounting a small file system is not allowed here";
  EXPECT_EQ(status, 0);
}

TEST(Hdf5Handle, AFileThatGotNoRoomIsMadeAgainWhenThereIsSome) {
  const testing::TempDir dir;
  const int status = exit_status_on_a_small_disk(dir.path(), [&] {
    write_file(dir / "spare", std::string(100'000, 'x'));
    fill(dir.path());
    std::filesystem::remove(dir / "spare");
    {
      Hdf5StagedFile file(dir / "x.h5");
      if (!is_refused_for_space(file, 300'000)) return 1;
    }
    std::filesystem::remove(dir / "filler");
    Hdf5StagedFile file(dir / "x.h5");
    file.reserve(300'000);
    return file.publish() > 0 ? 0 : 2;
  });
  if (status == kNotAllowed) GTEST_SKIP() << "mounting a small file system is not allowed here";
  EXPECT_EQ(status, 0);
}

TEST(Hdf5Handle, RoomThatWasNotNeededIsGivenBack) {
  const testing::TempDir dir;
  Hdf5StagedFile file(dir / "x.h5");
  file.reserve(uint64_t{8} << 20);
  file.publish();
  struct stat status {};
  ASSERT_EQ(stat((dir / "x.h5").c_str(), &status), 0);
  EXPECT_LT(status.st_blocks * 512, 1 << 20);
}

// The limit also meets the memory that abandoned writes go to, so that HDF5 cannot close the file:
// the process must nevertheless end as it wants to.
TEST(Hdf5Handle, AFileHdf5CannotCloseDoesNotCrashTheProcess) {
  const testing::TempDir dir;
  EXPECT_EQ(exit_status_of([&dir] {
              std::signal(SIGXFSZ, SIG_IGN);
              const rlimit limit{100'000, RLIM_INFINITY};
              setrlimit(RLIMIT_FSIZE, &limit);
              try {
                write_bytes(dir / "x.h5", size_t{4} << 20);
                return 1;
              } catch (const IoError& error) {
                return error.error_number() == EFBIG && names_in(dir.path()).empty() ? 0 : 2;
              }
            }),
            0);
}

}  // namespace
}  // namespace coppice
