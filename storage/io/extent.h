// A range of bytes of one file: the unit in which reads are wanted.
#pragma once

#include <cstdint>

namespace coppice {

/// `file` indexes the list of files of whoever made the extent (a checkpoint's shards, say).
struct Extent {
  uint32_t file = 0;
  uint64_t offset = 0;
  uint64_t bytes = 0;

  bool operator==(const Extent&) const = default;
};

}  // namespace coppice
