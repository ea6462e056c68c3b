// Waits for room on a disk instead of failing on it: a night's work is worth a pause.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace coppice {

struct SpaceGuardOptions {
  std::chrono::seconds patience{3600};                // after which waiting ends in an error
  std::chrono::milliseconds interval{1000};           // between two looks at the disk
  std::function<void(const std::string&)> note = {};  // told when a wait begins and ends
  std::function<bool()> stopped = {};                 // ends a wait at once
  /// Asked for the bytes that are free; by default of the kernel.
  std::function<uint64_t(const std::filesystem::path&)> free_bytes = {};
};

/// Any thread; blocks it.
class SpaceGuard {
 public:
  explicit SpaceGuard(SpaceGuardOptions options);

  /// Calls `take`, which takes `bytes` of room in `directory`, once that has them and a little
  /// more, so that what is at work there can still be closed and recorded; and again where it
  /// throws IoError (ENOSPC, EDQUOT) after all, because somebody else was quicker: what it began it
  /// must have undone. With `bytes` 0, a record of what is done, it is tried at once. Throws
  /// IoError (no space left), naming what is needed, what is free and how to go on, when patience
  /// ends. From then on, and from give_up() on, nobody waits any more. Throws Interrupted if
  /// stopped.
  void with_room(const std::filesystem::path& directory, uint64_t bytes,
                 const std::function<void()>& take);
  void give_up() { given_up_ = true; }

 private:
  SpaceGuardOptions options_;
  std::atomic<bool> given_up_ = false;
};

}  // namespace coppice
