// What to ask the kernel next for one read: the protocol of short reads, retries and file ends, the
// same for every engine.
#pragma once

#include <cstdint>
#include <exception>
#include <span>
#include <utility>

#include "storage/io/io_engine.h"

namespace coppice {

/// Follows one read through the kernel's answers. EINTR and EAGAIN ask again; a short read goes on
/// at the first missing byte (direct: at the aligned position below it); no byte more than before
/// is the end of the file. One thread at a time; never throws.
class ReadProgress {
 public:
  explicit ReadProgress(const Read& read);

  bool done() const { return done_; }
  /// Once done: null on success, else IoError or CorruptionError (the file ends before the required
  /// bytes).
  std::exception_ptr take_failure() { return std::exchange(failure_, nullptr); }

  /// The request to make next, while not done.
  int fd() const { return read_.file->fd(); }
  uint64_t offset() const { return read_.offset + begin_; }
  std::span<std::byte> into()
      const;  // at most 1 GiB: the kernel cuts at 2 GiB, an entry holds 32 bits

  /// Takes the kernel's answer to that request: bytes read, or -errno.
  void take(int64_t answer) noexcept;

 private:
  std::exception_ptr refused(int error_number) const noexcept;
  std::exception_ptr truncated() const noexcept;

  Read read_;
  uint64_t required_;
  uint64_t begin_ = 0;    // where the next request starts, from the start of the read
  uint64_t arrived_ = 0;  // bytes present without a gap
  bool done_ = false;
  std::exception_ptr failure_;
};

/// Does one read with pread on the calling thread. Throws IoError, CorruptionError.
void read_blocking(const Read& read);

}  // namespace coppice
