// What can go wrong with bytes on disk, as types that carry the facts to act on.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace coppice {

/// The operating system refused: an absent or unreadable file, no space left, a device error.
/// The message holds path, offset, bytes and the text of `error_number`.
class IoError : public std::runtime_error {
 public:
  IoError(const std::string& what_was_tried, const std::string& path, int error_number,
          uint64_t offset = 0, uint64_t bytes = 0);
  const std::string& path() const { return path_; }
  int error_number() const { return error_number_; }

 private:
  std::string path_;
  int error_number_;
};

/// A file's bytes contradict themselves: truncated, a header that lies, a checksum that differs.
/// The message holds path, offset, what was expected and what was found.
class CorruptionError : public std::runtime_error {
 public:
  CorruptionError(const std::string& path, uint64_t offset, const std::string& expected,
                  const std::string& found);
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace coppice
