#include "storage/io/write_behind.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

#include "storage/errors.h"
#include "storage/io/aligned_buffer.h"
#include "storage/io/file.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using testing::TempDir;

constexpr size_t kMiB = size_t{1} << 20;

/// Pages of the file that the page cache holds.
size_t pages_held(int fd, size_t bytes) {
  void* view = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, fd, 0);
  std::vector<unsigned char> held(bytes / 4096);
  if (view == MAP_FAILED || mincore(view, bytes, held.data()) != 0) return ~size_t{0};
  munmap(view, bytes);
  return static_cast<size_t>(std::ranges::count_if(held, [](unsigned char h) { return h & 1; }));
}

TEST(WriteBehind, ThePageCacheHoldsAWindowOfAFileOfAnyLength) {
  const TempDir directory;
  const UniqueFd fd(open((directory / "out").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  const AlignedBuffer chunk(8 * kMiB);
  std::ranges::fill(chunk.span(), std::byte{7});
  WriteBehind behind(directory / "out");
  constexpr size_t kBytes = 192 * kMiB;
  for (size_t offset = 0; offset < kBytes; offset += chunk.bytes()) {
    ASSERT_EQ(pwrite(fd.get(), chunk.data(), chunk.bytes(), static_cast<off_t>(offset)),
              static_cast<ssize_t>(chunk.bytes()));
    behind.wrote(fd.get(), offset, chunk.bytes());
  }
  EXPECT_LE(pages_held(fd.get(), kBytes) * 4096, 80 * kMiB);
  const std::string text = read_file(directory / "out");
  EXPECT_EQ(text.size(), kBytes);
  EXPECT_TRUE(std::ranges::all_of(text, [](char c) { return c == 7; }));
}

TEST(WriteBehind, WhereNothingCanBeWrittenBackNothingIsWrong) {
  int ends[2] = {};
  ASSERT_EQ(pipe2(ends, O_CLOEXEC), 0);
  const UniqueFd read_end(ends[0]);
  const UniqueFd write_end(ends[1]);
  WriteBehind behind("a pipe");
  behind.wrote(write_end.get(), 0, 4096);  // ESPIPE
  behind.wrote(write_end.get(), 4096, 4096);
}

}  // namespace
}  // namespace coppice
