// What the kernel knows of this process and its memory.
#pragma once

#include <cstdint>

namespace coppice {

/// Highest resident set so far, in bytes.
uint64_t peak_rss_bytes();

/// Resident now, in bytes, after the allocator has given back what is free.
uint64_t resident_bytes();

/// Makes the allocator give back what is free: later allocations take new pages, zeroed by the
/// kernel. Nothing where it is not tcmalloc.
void release_free_memory();

/// What this process may still take: what the kernel calls available, or what is left of its
/// control group's limit (v1 or v2) where that is less.
uint64_t available_memory_bytes();

}  // namespace coppice
