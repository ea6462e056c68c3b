#include "pipeline/openmp.h"

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <system_error>

namespace coppice {

void wait_without_spinning(char** argv) {
  const char* const variable = "OMP_WAIT_POLICY";
  if (std::getenv(variable) != nullptr) return;
  // Its own path, not /proc/self/exe: that would be the name that ps shows.
  std::error_code error;
  const std::filesystem::path program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error || setenv(variable, "passive", 1) != 0) return;
  execv(program.c_str(), argv);
}

}  // namespace coppice
