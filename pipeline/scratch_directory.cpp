#include "pipeline/scratch_directory.h"

#include <fmt/format.h>

#include <utility>

#include "configs/errors.h"   // ConfigError
#include "storage/io/file.h"  // make_directories

namespace coppice {

namespace fs = std::filesystem;

ScratchDirectory::ScratchDirectory(fs::path path, const char* flag) : path_(std::move(path)) {
  if (fs::exists(path_) && !fs::is_empty(path_)) {
    throw ConfigError(
        fmt::format("{}: {}: not empty; it is removed at the end, so give a directory of its own",
                    flag, path_.string()));
  }
  make_directories(path_);
}

ScratchDirectory::~ScratchDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

}  // namespace coppice
