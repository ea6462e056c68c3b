// A directory for what nobody keeps.
#pragma once

#include <filesystem>

namespace coppice {

/// Made now, removed with everything in it at the end.
class ScratchDirectory {
 public:
  /// Throws ConfigError, with `flag` as what named it, for one that holds anything.
  ScratchDirectory(std::filesystem::path path, const char* flag);
  ~ScratchDirectory();
  ScratchDirectory(const ScratchDirectory&) = delete;
  ScratchDirectory& operator=(const ScratchDirectory&) = delete;

 private:
  std::filesystem::path path_;
};

}  // namespace coppice
