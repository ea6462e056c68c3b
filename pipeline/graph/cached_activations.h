// The activation cache seen as sources and sinks: compressed off the device's thread, written by
// one HDF5 thread, read ahead through the I/O engine.
#pragma once

#include <tbb/task_arena.h>

#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "pipeline/device/device.h"
#include "pipeline/graph/serial_executor.h"
#include "pipeline/graph/workers.h"
#include "pipeline/telemetry/meter.h"
#include "stages/span_job.h"
#include "storage/cache/activation_cache.h"
#include "storage/io/io_engine.h"

namespace coppice {

/// Who reads and writes hidden states: the thread of one device.
struct CacheUser {
  Device* device = nullptr;               // where sources put them; outlives all that is handed out
  std::function<void(int)> on_read = {};  // told on the thread how many windows were handed out
  Meter waits = {};                       // what the thread waited; RunMeters::waits adds up all
};

struct CacheOptions {
  std::filesystem::path directory;
  ActivationShape shape;  // of every boundary
  /// By window: of the sequences that lie in it end to end, zeros behind them; empty: one each,
  /// which fills it.
  std::vector<std::vector<int>> lengths = {};
  at::ScalarType compute;  // sources convert to it
  int windows_ahead = 4;   // per source, decoded in memory
  int windows_behind = 4;  // per job, waiting to be compressed and written
  int codec_threads = 2;
  int64_t targets_in_ram = 0;  // first windows of a boundary inside a block: kept in memory only
  int64_t inputs_in_ram = 0;   // first windows of a boundary between blocks: in memory as well
  /// Calls `take`, which takes so many bytes of disk, on the HDF5 thread: may wait for room first,
  /// may call it again where it throws IoError (ENOSPC), may throw instead.
  std::function<void(uint64_t bytes, const std::function<void()>& take)> with_room =
      [](uint64_t, const std::function<void()>& take) { take(); };
};

/// All boundaries of one job, each hidden state once: in memory as far as the options say, else in
/// a file, "dense.12.h5". A boundary between blocks is always in its file too, for a run that is
/// continued; one inside a block is made again with its block, so its file holds the windows that
/// memory does not, and nobody is told of it. Any thread; what it hands out belongs to the thread
/// of its user and must not outlive it.
class CachedBoundaries {
 public:
  /// `hdf5` is the one serial place of the program's HDF5 calls, and outlives this. `on_durable` is
  /// told there when a boundary's file is complete and on disk.
  CachedBoundaries(CacheOptions options, IoEngine& engine, SerialExecutor& hdf5, RunMeters& meters,
                   std::function<void(Boundary, const FileRecord&)> on_durable);
  ~CachedBoundaries();  // waits for what is being written

  /// On the user's thread; `user` outlives what is handed out. A source waits until the boundary
  /// can be read.
  std::unique_ptr<ActivationSource> source(Boundary boundary, CacheUser& user);
  /// Null for one that is unwanted.
  std::unique_ptr<ActivationSink> sink(Boundary boundary, CacheUser& user);

  /// Set before the run.
  void set_unwanted(std::function<bool(Boundary)> unwanted) { unwanted_ = std::move(unwanted); }

  /// What keeps a boundary that an earlier process left from being read, if anything: absent,
  /// damaged. Reads it whole. Any thread but the HDF5 one.
  std::optional<std::string> fault_of(Boundary boundary);

  /// Waits until a boundary written by this job is durable; rethrows what went wrong. Returns at
  /// once for one that was there before. Any thread but the HDF5 one.
  void wait_durable(Boundary boundary);

  /// Lets go of what is in memory of the boundary: nobody will read it again. Any thread.
  void forget(Boundary boundary);

  /// Lets go of the boundary, in memory and on disk. Any thread.
  void expire(Boundary boundary);
  std::filesystem::path path_of(Boundary boundary) const;

 private:
  class Source;
  class Sink;
  /// Windows of one boundary as they are kept in memory; set once each, before it is durable.
  using KeptWindows = std::vector<std::shared_ptr<const EncodedChunk>>;

  int64_t windows_in_ram(Boundary boundary) const;
  /// The file holds the windows from here on.
  int64_t first_in_file(Boundary boundary) const;
  /// What a reader of the boundary has to wait for: that its windows are in memory, where all are,
  /// and else that its file is there. Invalid for one of an earlier process.
  std::shared_future<void> readable(Boundary boundary);

  CacheOptions options_;
  IoEngine& engine_;
  SerialExecutor& hdf5_;
  RunMeters& meters_;
  std::function<void(Boundary, const FileRecord&)> on_durable_;
  std::function<bool(Boundary)> unwanted_;
  std::mutex mutex_;
  std::map<Boundary, std::shared_future<void>> written_;
  std::map<Boundary, std::shared_future<void>> in_memory_;  // of those kept whole
  std::map<Boundary, std::shared_ptr<KeptWindows>> kept_;
  struct Quota;
  std::shared_ptr<Quota> behind_;
  tbb::global_control workers_ = enough_workers();
  tbb::task_arena codec_;
};

/// The cache as one user sees it.
class UsersBoundaries final : public Boundaries {
 public:
  /// Both outlive it.
  UsersBoundaries(CachedBoundaries& cached, CacheUser& user) : cached_(cached), user_(user) {}

  std::unique_ptr<ActivationSource> source(Boundary boundary) override {
    return cached_.source(boundary, user_);
  }
  std::unique_ptr<ActivationSink> sink(Boundary boundary) override {
    return cached_.sink(boundary, user_);
  }

 private:
  CachedBoundaries& cached_;
  CacheUser& user_;
};

}  // namespace coppice
