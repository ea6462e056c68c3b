// What the kernel knows of this process and its memory.
#pragma once

#include <cstdint>

namespace coppice {

/// Highest resident set so far, in bytes.
uint64_t peak_rss_bytes();

/// Makes peak_rss_bytes() start again from what is resident now, where the kernel lets it.
void forget_peak_rss();

/// Resident now, in bytes, what the allocator keeps included.
uint64_t resident_bytes();

/// What this process may still take: what the kernel calls available, or what is left of its
/// control group's limit (v1 or v2) where that is less.
uint64_t available_memory_bytes();

}  // namespace coppice
