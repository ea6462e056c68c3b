// What O_DIRECT asks of a file, and switching it on and off.
#pragma once

#include <cstdint>

namespace coppice {

/// Switches an open file to direct I/O. Returns what offsets, lengths and addresses must be
/// multiples of (STATX_DIOALIGN, 4096 where the kernel does not tell); 1 where the file system does
/// not do it, and the file stays buffered.
uint32_t make_direct(int fd);

/// Back to the page cache, where any offset will do. False if it was not direct.
bool make_buffered(int fd);

}  // namespace coppice
