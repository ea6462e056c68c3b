// Chooses an engine, and waits for one batch.
#include "storage/io/io_engine.h"

#include <fmt/format.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <utility>

#include "storage/errors.h"
#include "storage/io/pread_engine.h"
#include "storage/io/uring_engine.h"

namespace coppice {

// An engine that reads into any memory alike has nothing to prepare.
Registration IoEngine::register_long_lived(const LongLived&) { return {}; }

std::unique_ptr<IoEngine> make_io_engine(const IoEngineOptions& options) {
  return make_io_engine(options, RingCalls{});
}

std::unique_ptr<IoEngine> make_io_engine(const IoEngineOptions& options, const RingCalls& calls) {
  switch (options.engine) {
    case EngineChoice::kPread:
      return make_pread_engine(options);
    case EngineChoice::kUring:
      return make_uring_engine(options, calls);
    case EngineChoice::kAuto:
      break;
  }
  try {
    return make_uring_engine(options, calls);
  } catch (const IoError& refused) {
    // Containers forbid it (EPERM), old kernels lack it (ENOSYS), memory locks limit it (ENOMEM):
    // slower, the same bytes.
    if (options.on_fallback) {
      const char* name = strerrorname_np(refused.error_number());
      options.on_fallback(fmt::format("io_uring is refused ({}): reading with {} pread threads",
                                      name != nullptr ? name : "unknown errno",
                                      options.pread_threads));
    }
    return make_pread_engine(options);
  }
}

void read_now(IoEngine& engine, ReadBatch batch) {
  struct Arrival {
    std::mutex mutex;
    std::condition_variable changed;
    bool complete = false;
    std::exception_ptr failure;
  };
  // Shared: the completion may still be notifying when the waiting side has gone on. The failure
  // moves from thread to thread, so that only the one that catches it ever frees it.
  const auto arrival = std::make_shared<Arrival>();
  engine.submit(std::move(batch), [arrival](ReadBatch, std::exception_ptr failure) {
    const std::lock_guard lock(arrival->mutex);
    arrival->failure = std::move(failure);
    arrival->complete = true;
    arrival->changed.notify_one();
  });
  std::unique_lock lock(arrival->mutex);
  arrival->changed.wait(lock, [&] { return arrival->complete; });
  if (arrival->failure != nullptr) std::rethrow_exception(std::move(arrival->failure));
}

}  // namespace coppice
