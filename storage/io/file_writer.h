// Writes a stream of bytes past the page cache, whatever their address and number.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <future>
#include <span>

#include "storage/io/aligned_buffer.h"

namespace coppice {

/// Writes in order from the start of an open file. Direct where the file system does it and the
/// file is large: the page cache costs a copy and a page for every byte, and a wait at the sync.
/// Aligned memory goes to the disk as it lies; other bytes go through two buffers, one written
/// while the other is filled. One thread. Throws IoError; after that nothing more may be written.
class FileWriter {
 public:
  /// Does not own `fd`, which is open for writing; `path` is for messages.
  FileWriter(int fd, std::filesystem::path path, uint64_t expected_bytes);

  /// Takes the bytes; they are in the file after flush(), in part before.
  void append(std::span<const std::byte> bytes);
  /// Writes what was held back for its alignment; the end of the file goes through the page cache.
  /// Nothing may be appended afterwards. Not yet durable: the caller syncs.
  void flush();
  uint64_t bytes() const { return bytes_; }

 private:
  /// Bytes on their way from memory of any alignment.
  struct Piece {
    AlignedBuffer memory;
    size_t filled = 0;
    uint64_t offset = 0;        // in the file
    std::future<void> written;  // destroyed first: waits, so that the memory outlives the write
  };
  bool may_go_as_it_lies(std::span<const std::byte> bytes) const;
  size_t piece_bytes() const;
  size_t put_by(std::span<const std::byte> bytes);
  void write_at(uint64_t offset, std::span<const std::byte> bytes) const;

  int fd_;
  std::filesystem::path path_;
  uint64_t expected_bytes_;
  uint32_t alignment_ = 1;
  uint64_t bytes_ = 0;  // taken so far
  std::array<Piece, 2> pieces_;
  size_t filling_ = 0;
};

/// "No space" is the one write error a person can mend at once, so it says how.
[[noreturn]] void throw_write_error(const char* what_was_tried, const std::filesystem::path& path,
                                    int error_number, uint64_t offset, uint64_t bytes);

}  // namespace coppice
