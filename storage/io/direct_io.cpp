#include "storage/io/direct_io.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/statfs.h>

#include <algorithm>

namespace coppice {
namespace {

constexpr uint32_t kAssumedAlignment = 4096;  // no device of today asks for more

bool file_system_ignores_direct(int fd) {
  // A tmpfs accepts O_DIRECT since 6.6 and copies all the same: only the alignment would be left.
  struct statfs file_system {};
  return fstatfs(fd, &file_system) == 0 && file_system.f_type == TMPFS_MAGIC;
}

/// 0 where direct I/O is impossible.
uint32_t direct_alignment(int fd) {
  if (file_system_ignores_direct(fd)) return 0;
#ifdef STATX_DIOALIGN
  struct statx facts {};
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &facts) == 0 &&
      (facts.stx_mask & STATX_DIOALIGN) != 0) {
    if (facts.stx_dio_offset_align == 0) return 0;
    return std::max(facts.stx_dio_mem_align, facts.stx_dio_offset_align);
  }
#endif
  return kAssumedAlignment;
}

}  // namespace

uint32_t make_direct(int fd) {
  const uint32_t alignment = direct_alignment(fd);
  const int flags = fcntl(fd, F_GETFL);
  if (alignment <= 1 || flags < 0 || fcntl(fd, F_SETFL, flags | O_DIRECT) != 0) return 1;
  return alignment;
}

bool make_buffered(int fd) {
  const int flags = fcntl(fd, F_GETFL);
  return flags >= 0 && (flags & O_DIRECT) != 0 && fcntl(fd, F_SETFL, flags & ~O_DIRECT) == 0;
}

}  // namespace coppice
