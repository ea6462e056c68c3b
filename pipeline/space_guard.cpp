#include "pipeline/space_guard.h"

#include <fmt/format.h>

#include <cerrno>
#include <optional>
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

/// The error of a disk that was found full; nothing if it worked.
std::optional<IoError> try_to(const std::function<void()>& take) {
  try {
    take();
  } catch (const IoError& error) {
    if (error.error_number() != ENOSPC && error.error_number() != EDQUOT) throw;
    return error;
  }
  return std::nullopt;
}

}  // namespace

SpaceGuard::SpaceGuard(SpaceGuardOptions options) : options_(std::move(options)) {
  if (!options_.free_bytes) options_.free_bytes = free_on;
  if (!options_.note) options_.note = [](const std::string&) {};
  if (!options_.stopped) options_.stopped = [] { return false; };
}

void SpaceGuard::with_room(const fs::path& directory, uint64_t bytes,
                           const std::function<void()>& take) {
  const uint64_t needed = bytes == 0 ? 0 : bytes + kReserveBytes;
  std::optional<Clock::time_point> deadline;
  for (;;) {
    const uint64_t free = options_.free_bytes(directory);
    std::optional<IoError> refusal;
    if (free >= needed) {
      refusal = try_to(take);
      if (!refusal) break;
    }
    const std::string lack =
        refusal ? std::string(refusal->what())
                : fmt::format("{}: {} needed, {} free", directory.string(),
                              human_bytes(double(needed)), human_bytes(double(free)));
    if (!deadline) {
      deadline = Clock::now() + options_.patience;
      options_.note(fmt::format("{}: waiting up to {} for room (--disk-wait)", lack,
                                human_seconds(double(options_.patience.count()))));
    }
    if (options_.stopped()) throw Interrupted();
    if (given_up_ || Clock::now() >= *deadline) {
      given_up_ = true;
      throw IoError(fmt::format("no space left ({}); make room and continue with --resume", lack),
                    directory.string(), refusal ? refusal->error_number() : ENOSPC, 0, bytes);
    }
    std::this_thread::sleep_for(options_.interval);
  }
  if (deadline) {
    options_.note(fmt::format("{}: there is room again: going on", directory.string()));
  }
}

}  // namespace coppice
