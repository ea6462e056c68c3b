// A disk that runs full, for code in a process of its own.
#pragma once

#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

namespace coppice::testing {

constexpr int kNotAllowed = 77;

/// Exit status of `body` in a process of its own, exit handlers included; -1 if it crashed.
template <typename Body>
int exit_status_of(Body body) {
  std::fflush(nullptr);  // or the child's exit prints it again
  const pid_t child = fork();
  if (child == 0) std::exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/// Exit status of `body` in a process that sees a file system of 1 MiB at `directory`; kNotAllowed
/// where mounting one is not allowed.
template <typename Body>
int exit_status_on_a_small_disk(const std::filesystem::path& directory, Body body) {
  return exit_status_of([&] {
    const int spaces = geteuid() == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS;
    if (unshare(spaces) != 0) return kNotAllowed;
    if (mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) return kNotAllowed;
    if (mount("tmpfs", directory.c_str(), "tmpfs", 0, "size=1m") != 0) return kNotAllowed;
    return body();
  });
}

constexpr uint64_t kDiskPage = 4096;

/// Fills the disk of `directory` except for so many pages of kDiskPage bytes.
inline void fill(const std::filesystem::path& directory, uint64_t free_pages = 0) {
  uint64_t pages = 0;
  {
    std::ofstream filler(directory / "filler");
    const std::string page(kDiskPage, 'x');
    while (filler << page << std::flush) ++pages;
  }
  std::filesystem::resize_file(directory / "filler",
                               pages > free_pages ? (pages - free_pages) * kDiskPage : 0);
}

}  // namespace coppice::testing
