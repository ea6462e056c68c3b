// Judges each answer of the kernel: finished, ask again, the end of the file, or an error.
#include "storage/io/read_progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "storage/errors.h"

namespace coppice {
namespace {

constexpr size_t kMaxRequestBytes = size_t{1} << 30;

}  // namespace

ReadProgress::ReadProgress(const Read& read)
    : read_(read),
      required_(std::min<uint64_t>(read.required_bytes, read.into.size())),
      done_(read.into.empty()) {}

std::span<std::byte> ReadProgress::into() const {
  const std::span<std::byte> rest = read_.into.subspan(begin_);
  return rest.first(std::min(rest.size(), kMaxRequestBytes));
}

void ReadProgress::take(int64_t answer) noexcept {
  if (answer == -EINTR || answer == -EAGAIN) return;
  if (answer < 0) {
    failure_ = refused(static_cast<int>(-answer));
    done_ = true;
    return;
  }
  const uint64_t arrived = begin_ + static_cast<uint64_t>(answer);
  // A direct request starts at or below the first missing byte; hearing only of bytes already here
  // is what 0 is for a buffered one.
  const bool file_ends = arrived <= arrived_;
  arrived_ = std::max(arrived_, arrived);
  const bool at_known_end = read_.offset + arrived_ >= read_.file->bytes();
  if (arrived_ == read_.into.size() || (arrived_ >= required_ && (file_ends || at_known_end))) {
    done_ = true;
  } else if (file_ends) {
    failure_ = truncated();
    done_ = true;
  } else {
    begin_ = arrived_ - arrived_ % read_.file->alignment();
  }
}

std::exception_ptr ReadProgress::refused(int error_number) const noexcept {
  try {
    std::string what = "reading";
    if (error_number == EINVAL && read_.file->is_direct()) {
      what = fmt::format("direct read (offset, length and address must be multiples of {})",
                         read_.file->alignment());
    }
    throw IoError(what, read_.file->path().string(), error_number, offset(), into().size());
  } catch (...) {
    return std::current_exception();
  }
}

std::exception_ptr ReadProgress::truncated() const noexcept {
  try {
    throw CorruptionError(
        read_.file->path().string(), read_.offset + arrived_,
        fmt::format("{} bytes from offset {} on", required_, read_.offset),
        fmt::format("{} bytes: the file is truncated; fetch or write it again", arrived_));
  } catch (...) {
    return std::current_exception();
  }
}

void read_blocking(const Read& read) {
  ReadProgress progress(read);
  while (!progress.done()) {
    const std::span<std::byte> into = progress.into();
    const ssize_t answer =
        pread(progress.fd(), into.data(), into.size(), static_cast<off_t>(progress.offset()));
    progress.take(answer < 0 ? -errno : answer);
  }
  if (std::exception_ptr failure = progress.take_failure()) {
    std::rethrow_exception(std::move(failure));
  }
}

}  // namespace coppice
