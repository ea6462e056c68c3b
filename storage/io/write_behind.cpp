#include "storage/io/write_behind.h"

#include <fcntl.h>

#include <cerrno>

#include "storage/io/file_writer.h"  // throw_write_error

namespace coppice {
namespace {

// Enough to keep a disk busy, and few enough pages to be taken again and again.
constexpr uint64_t kWindowBytes = uint64_t{64} << 20;

}  // namespace

void WriteBehind::wrote(int fd, uint64_t offset, uint64_t bytes) {
  if (!possible_) return;
  const Extent extent{.file = 0, .offset = offset, .bytes = bytes};
  sync(fd, extent, SYNC_FILE_RANGE_WRITE);
  on_their_way_.push_back(extent);
  bytes_on_their_way_ += bytes;
  while (possible_ && bytes_on_their_way_ > kWindowBytes) {
    const Extent oldest = on_their_way_.front();
    on_their_way_.pop_front();
    bytes_on_their_way_ -= oldest.bytes;
    sync(fd, oldest,
         SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    posix_fadvise(fd, static_cast<off_t>(oldest.offset), static_cast<off_t>(oldest.bytes),
                  POSIX_FADV_DONTNEED);
  }
}

void WriteBehind::sync(int fd, const Extent& extent, unsigned flags) {
  if (sync_file_range(fd, static_cast<off_t>(extent.offset), static_cast<off_t>(extent.bytes),
                      flags) == 0) {
    return;
  }
  if (errno == EIO || errno == ENOSPC || errno == EDQUOT) {
    throw_write_error("writing back", path_, errno, extent.offset, extent.bytes);
  }
  possible_ = false;  // this file system has no such call: the sync at the end does it all
}

}  // namespace coppice
