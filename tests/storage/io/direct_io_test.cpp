#include "storage/io/direct_io.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "storage/io/file.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using testing::TempDir;

TEST(DirectIo, IsSwitchedOffAgain) {
  const TempDir directory;
  write_file(directory / "file", "text");
  const UniqueFd fd(open((directory / "file").c_str(), O_RDONLY | O_CLOEXEC));
  EXPECT_FALSE(make_buffered(fd.get())) << "it was not direct";
  if (make_direct(fd.get()) == 1) GTEST_SKIP() << "no O_DIRECT in " << directory.path();
  EXPECT_NE(fcntl(fd.get(), F_GETFL) & O_DIRECT, 0);
  EXPECT_TRUE(make_buffered(fd.get()));
  EXPECT_EQ(fcntl(fd.get(), F_GETFL) & O_DIRECT, 0);
  char text[3] = {};
  EXPECT_EQ(pread(fd.get(), text, 3, 1), 3) << "any offset will do";
}

TEST(DirectIo, ATmpfsStaysBuffered) {
  if (!std::filesystem::is_directory("/dev/shm")) GTEST_SKIP() << "no /dev/shm here";
  const UniqueFd fd(open("/dev/shm", O_RDWR | O_TMPFILE | O_CLOEXEC, 0600));
  if (fd.get() < 0) GTEST_SKIP() << "/dev/shm takes no file";
  EXPECT_EQ(make_direct(fd.get()), 1u);
  EXPECT_EQ(fcntl(fd.get(), F_GETFL) & O_DIRECT, 0);
}

}  // namespace
}  // namespace coppice
