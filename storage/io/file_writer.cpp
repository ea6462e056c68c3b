#include "storage/io/file_writer.h"

#include <fmt/format.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "storage/errors.h"
#include "storage/io/direct_io.h"

namespace coppice {
namespace {

constexpr uint64_t kWorthDirect = uint64_t{1} << 20;
constexpr size_t kPieceBytes = size_t{4} << 20;
// The kernel keeps the device busy within a call, not between two.
constexpr size_t kMaxCallBytes = size_t{64} << 20;

}  // namespace

void throw_write_error(const char* what_was_tried, const std::filesystem::path& path,
                       int error_number, uint64_t offset, uint64_t bytes) {
  if (error_number != ENOSPC && error_number != EDQUOT) {
    throw IoError(what_was_tried, path.string(), error_number, offset, bytes);
  }
  struct statvfs space {};
  const bool known =
      statvfs(path.parent_path().empty() ? "." : path.parent_path().c_str(), &space) == 0;
  throw IoError(
      fmt::format("no space left while {}: {} bytes needed, {} free; free some space or choose "
                  "another --output-dir",
                  what_was_tried, bytes,
                  known ? fmt::to_string(uint64_t{space.f_bavail} * space.f_frsize) : "unknown"),
      path.string(), error_number, offset, bytes);
}

FileWriter::FileWriter(int fd, std::filesystem::path path, uint64_t expected_bytes)
    : fd_(fd), path_(std::move(path)), expected_bytes_(expected_bytes) {
  if (expected_bytes >= kWorthDirect) alignment_ = make_direct(fd_);
}

bool FileWriter::may_go_as_it_lies(std::span<const std::byte> bytes) const {
  return pieces_[filling_].filled == 0 && bytes.size() >= alignment_ &&
         reinterpret_cast<uintptr_t>(bytes.data()) % alignment_ == 0;
}

void FileWriter::append(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    size_t taken = 0;
    if (may_go_as_it_lies(bytes)) {
      taken = bytes.size() - bytes.size() % alignment_;
      write_at(bytes_, bytes.first(taken));
    } else {
      taken = put_by(bytes);
    }
    bytes_ += taken;
    bytes = bytes.subspan(taken);
  }
}

// Often only the end of an image that was written as it lies: that needs no large piece.
size_t FileWriter::piece_bytes() const {
  const uint64_t rest = bytes_ < expected_bytes_ ? expected_bytes_ - bytes_ : kPieceBytes;
  return std::min<uint64_t>(kPieceBytes, (rest + alignment_ - 1) / alignment_ * alignment_);
}

// Copies as much as the piece at work takes, and sends it off when it is full.
size_t FileWriter::put_by(std::span<const std::byte> bytes) {
  Piece& piece = pieces_[filling_];
  if (piece.written.valid()) piece.written.get();
  if (piece.memory.bytes() == 0) piece.memory = AlignedBuffer(piece_bytes());
  if (piece.filled == 0) piece.offset = bytes_;
  const size_t taken = std::min(bytes.size(), piece.memory.bytes() - piece.filled);
  std::memcpy(piece.memory.data() + piece.filled, bytes.data(), taken);
  piece.filled += taken;
  if (piece.filled == piece.memory.bytes()) {
    // Deferred where there is no thread to be had: then it is done when it is waited for.
    piece.written = std::async(std::launch::async | std::launch::deferred,
                               [this, &piece] { write_at(piece.offset, piece.memory.span()); });
    piece.filled = 0;
    filling_ = (filling_ + 1) % pieces_.size();
  }
  return taken;
}

void FileWriter::flush() {
  for (Piece& piece : pieces_) {
    if (piece.written.valid()) piece.written.get();
  }
  Piece& last = pieces_[filling_];
  const std::span<const std::byte> rest = last.memory.span().first(last.filled);
  const size_t whole = rest.size() - rest.size() % alignment_;
  write_at(last.offset, rest.first(whole));
  if (whole < rest.size()) {
    make_buffered(fd_);
    write_at(last.offset + whole, rest.subspan(whole));
  }
  for (Piece& piece : pieces_) piece = {};
}

// EINTR asks again; a short write goes on at the first missing byte. That byte may lie where no
// direct write can begin (EINVAL): the rest of the file then goes through the page cache.
void FileWriter::write_at(uint64_t offset, std::span<const std::byte> bytes) const {
  bool tried_buffered = false;  // here or by the write of the other piece
  while (!bytes.empty()) {
    const ssize_t taken = pwrite(fd_, bytes.data(), std::min(bytes.size(), kMaxCallBytes),
                                 static_cast<off_t>(offset));
    if (taken < 0 && errno == EINTR) continue;
    if (taken < 0 && errno == EINVAL && alignment_ > 1 && !tried_buffered) {
      make_buffered(fd_);
      tried_buffered = true;
      continue;
    }
    if (taken <= 0) {
      throw_write_error("writing", path_, taken < 0 ? errno : EIO, offset, bytes.size());
    }
    offset += static_cast<uint64_t>(taken);
    bytes = bytes.subspan(static_cast<size_t>(taken));
  }
}

}  // namespace coppice
