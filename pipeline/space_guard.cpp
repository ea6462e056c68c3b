#include "pipeline/space_guard.h"

#include <fmt/format.h>

#include <cerrno>
#include <thread>
#include <utility>

#include "pipeline/interrupt.h"           // Interrupted
#include "pipeline/telemetry/progress.h"  // human_bytes, human_seconds
#include "storage/errors.h"               // IoError

namespace coppice {
namespace {

namespace fs = std::filesystem;

// For journal, index and what HDF5 writes late.
constexpr uint64_t kReserveBytes = uint64_t{4} << 20;

// A disk that cannot be asked is written to, and says itself what it lacks.
uint64_t free_on(const fs::path& directory) {
  std::error_code error;
  const fs::space_info space = fs::space(directory, error);
  return error ? UINT64_MAX : space.available;
}

/// False if it found the disk full.
bool try_to(const std::function<void()>& take) {
  try {
    take();
  } catch (const IoError& error) {
    if (error.error_number() != ENOSPC && error.error_number() != EDQUOT) throw;
    return false;
  }
  return true;
}

}  // namespace

SpaceGuard::SpaceGuard(SpaceGuardOptions options) : options_(std::move(options)) {
  if (!options_.free_bytes) options_.free_bytes = free_on;
  if (!options_.note) options_.note = [](const std::string&) {};
  if (!options_.stopped) options_.stopped = [] { return false; };
}

void SpaceGuard::with_room(const fs::path& directory, uint64_t bytes,
                           const std::function<void()>& take) {
  const uint64_t needed = bytes + kReserveBytes;
  const Clock::time_point deadline = Clock::now() + options_.patience;
  for (bool has_waited = false;; has_waited = true) {
    const uint64_t free = options_.free_bytes(directory);
    if (free >= needed && try_to(take)) {
      if (has_waited) {
        options_.note(fmt::format("{}: there is room again: going on", directory.string()));
      }
      return;
    }
    if (!has_waited) {
      options_.note(fmt::format("{}: {} needed, {} free: waiting up to {} for room (--disk-wait)",
                                directory.string(), human_bytes(double(needed)),
                                human_bytes(double(free)),
                                human_seconds(double(options_.patience.count()))));
    }
    wait_a_little(directory, bytes, free, deadline);
  }
}

void SpaceGuard::wait_a_little(const fs::path& directory, uint64_t bytes, uint64_t free,
                               Clock::time_point deadline) {
  if (options_.stopped()) throw Interrupted();
  if (given_up_ || Clock::now() >= deadline) {
    given_up_ = true;
    throw IoError(
        fmt::format("no space left: {} needed, {} free; make room and continue with --resume",
                    human_bytes(double(bytes + kReserveBytes)), human_bytes(double(free))),
        directory.string(), ENOSPC, 0, bytes);
  }
  std::this_thread::sleep_for(options_.interval);
}

}  // namespace coppice
