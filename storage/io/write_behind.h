// Keeps a buffered file from piling up in the page cache while another library writes it.
#pragma once

#include <cstdint>
#include <deque>
#include <filesystem>

#include "storage/io/extent.h"

namespace coppice {

/// Starts to write back what was written, and lets its pages go once they are on the disk: the file
/// grows at the speed of the disk, the last sync is short, and the page cache holds 64 MiB of it.
/// Durable is only what is synced afterwards. One thread. Throws IoError for an error of the disk,
/// after which the file is to be given up.
class WriteBehind {
 public:
  /// `path` is for messages; the file stays open elsewhere.
  explicit WriteBehind(std::filesystem::path path) : path_(std::move(path)) {}

  /// Says that these bytes of the file have been written. Waits while more than the window is on
  /// its way.
  void wrote(int fd, uint64_t offset, uint64_t bytes);

 private:
  void sync(int fd, const Extent& extent, unsigned flags);

  std::filesystem::path path_;
  std::deque<Extent> on_their_way_;
  uint64_t bytes_on_their_way_ = 0;
  bool possible_ = true;
};

}  // namespace coppice
