#include "tests/support/temp_dir.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace coppice::testing {

TempDir::TempDir() {
  // Below the build tree's file system, not /tmp: a tmpfs has no O_DIRECT.
  std::string pattern = (std::filesystem::current_path() / "test.XXXXXX").string();
  if (mkdtemp(pattern.data()) == nullptr) throw std::runtime_error("mkdtemp: " + pattern);
  path_ = pattern;
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

}  // namespace coppice::testing
