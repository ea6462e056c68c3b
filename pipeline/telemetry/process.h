// What the kernel knows of this process.
#pragma once

#include <cstdint>

namespace coppice {

/// Highest resident set so far, in bytes.
uint64_t peak_rss_bytes();

}  // namespace coppice
