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
using Clock = std::chrono::steady_clock;

// For journal, index and what HDF5 writes late.
constexpr uint64_t kReserveBytes = uint64_t{4} << 20;

// A disk that cannot be asked is written to, and says itself what it lacks.
uint64_t free_on(const fs::path& directory) {
  std::error_code error;
  const fs::space_info space = fs::space(directory, error);
  return error ? UINT64_MAX : space.available;
}

}  // namespace

SpaceGuard::SpaceGuard(SpaceGuardOptions options) : options_(std::move(options)) {
  if (!options_.free_bytes) options_.free_bytes = free_on;
  if (!options_.note) options_.note = [](const std::string&) {};
  if (!options_.stopped) options_.stopped = [] { return false; };
}

void SpaceGuard::require(const fs::path& directory, uint64_t bytes) {
  const uint64_t needed = bytes + kReserveBytes;
  uint64_t free = options_.free_bytes(directory);
  if (free >= needed) return;
  options_.note(fmt::format("{}: {} needed, {} free: waiting up to {} for room (--disk-wait)",
                            directory.string(), human_bytes(double(needed)),
                            human_bytes(double(free)),
                            human_seconds(double(options_.patience.count()))));
  const Clock::time_point start = Clock::now();
  while (free < needed) {
    if (options_.stopped()) throw Interrupted();
    if (given_up_ || Clock::now() - start >= options_.patience) {
      given_up_ = true;
      throw IoError(fmt::format("no space left: {} needed, {} free; make room and continue with "
                                "--resume",
                                human_bytes(double(needed)), human_bytes(double(free))),
                    directory.string(), ENOSPC, 0, bytes);
    }
    std::this_thread::sleep_for(options_.interval);
    free = options_.free_bytes(directory);
  }
  options_.note(fmt::format("{}: there is room again: going on", directory.string()));
}

}  // namespace coppice
