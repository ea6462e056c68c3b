// Spells errors out: static text first, then path and position, then what the system said.
#include "storage/errors.h"

#include <fmt/format.h>

#include <cstring>
#include <system_error>

namespace coppice {
namespace {

std::string error_text(int error_number) {
  const char* name = strerrorname_np(error_number);
  return fmt::format("{} ({})", std::generic_category().message(error_number),
                     name != nullptr ? name : "unknown errno");
}

std::string position(uint64_t offset, uint64_t bytes) {
  if (offset == 0 && bytes == 0) return "";
  return fmt::format(", {} bytes at offset {}", bytes, offset);
}

}  // namespace

IoError::IoError(const std::string& what_was_tried, const std::string& path, int error_number,
                 uint64_t offset, uint64_t bytes)
    : std::runtime_error(fmt::format("{}: {}{}: {}", what_was_tried, path, position(offset, bytes),
                                     error_text(error_number))),
      path_(path),
      error_number_(error_number) {}

CorruptionError::CorruptionError(const std::string& path, uint64_t offset,
                                 const std::string& expected, const std::string& found)
    : std::runtime_error(
          fmt::format("{}, byte {}: expected {}, found {}", path, offset, expected, found)),
      path_(path) {}

}  // namespace coppice
