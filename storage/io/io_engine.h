// Reads many pieces of many files at once, without a thread per read.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "storage/io/file.h"

namespace coppice {

/// `into.size()` bytes of `file` from `offset` on. Where the file ends earlier, at least
/// `required_bytes` must arrive: fewer is a truncated file.
struct Read {
  const ReadFile* file = nullptr;
  uint64_t offset = 0;
  std::span<std::byte> into = {};
  uint64_t required_bytes = 0;
};

/// kAhead: before it is needed. kNow: somebody waits for it, or will before long.
enum class Urgency { kAhead, kNow };

/// Reads that succeed or fail together. `memory` (a lease, a buffer; it may own the files too)
/// stays alive until the last of them has been reaped, so nothing a caller destroys can be written
/// to after it is gone. The files must be open that long.
struct ReadBatch {
  std::shared_ptr<void> memory;
  std::vector<Read> reads;
  Urgency urgency = Urgency::kAhead;
};

/// Called once per batch on one of the engine's threads, after *every* read of the batch has been
/// reaped. `failure` is null on success, else an IoError or CorruptionError (truncated file).
/// Must not throw and must not block.
using ReadCompletion = std::function<void(ReadBatch batch, std::exception_ptr failure)>;

/// Memory and files that many reads will use: slots, slabs, the shards of a checkpoint.
struct LongLived {
  std::vector<std::span<std::byte>> memory;
  std::vector<const ReadFile*> files;
};

/// What an engine has prepared once instead of at every read. Dropping `lease` undoes it; the
/// memory and the files must live at least as long. The engine may go first.
struct Registration {
  uint64_t memory_bytes = 0;  // of the memory given; reads into the rest go the ordinary way
  size_t files = 0;
  std::shared_ptr<void> lease;
};

class IoEngine {
 public:
  virtual ~IoEngine() = default;  // reaps everything in flight first
  virtual std::string_view name() const = 0;
  /// Any thread; returns at once. Reads of urgent batches are started before all others, those of
  /// earlier batches before those of later ones: a block that is read ahead, however large, holds
  /// nothing up that somebody waits for.
  virtual void submit(ReadBatch batch, ReadCompletion done) = 0;
  /// Makes reads cheaper that fall into `what`, where the engine can; the bytes are the same
  /// either way. Registered memory is resident from now on. A refusal is no error: it is told to
  /// `on_fallback`, once for memory and once for files. Any thread but the engine's own (a
  /// completion's): this waits for that one.
  virtual Registration register_long_lived(const LongLived& what);
};

enum class EngineChoice { kAuto, kUring, kPread };

struct IoEngineOptions {
  EngineChoice engine = EngineChoice::kAuto;
  uint64_t max_bytes_in_flight = uint64_t{32}
                                 << 20;  // more does not help a drive, and delays a failure
  uint32_t queue_depth = 64;             // entries of the ring
  uint32_t pread_threads = 4;
  /// Told, once each, which fallback was taken and why ("io_uring is refused (EPERM): …"), on the
  /// thread that makes the engine or registers with it.
  std::function<void(const std::string&)> on_fallback = {};
};

/// kAuto: io_uring where the kernel grants a ring, else pread. kUring throws IoError where refused.
std::unique_ptr<IoEngine> make_io_engine(const IoEngineOptions& options);

/// Reads one batch and waits for it: for headers, tests and tools. Throws what the engine reports.
void read_now(IoEngine& engine, ReadBatch batch);

}  // namespace coppice
