// Takes the windows of one boundary: device's thread: starts the copy → codec arena: waits for it,
// encodes → HDF5 thread: keeps and writes; the last one finishes the file.
#pragma once

#include <atomic>
#include <exception>
#include <future>
#include <memory>
#include <semaphore>

#include "pipeline/graph/cached_activations.h"

namespace coppice {

// Windows handed to the sinks and not yet on disk.
struct CachedBoundaries::Quota {
  explicit Quota(int windows) : free(windows) {}
  std::counting_semaphore<> free;
};

class CachedBoundaries::Sink final : public ActivationSink {
 public:
  Sink(CachedBoundaries& owner, Boundary boundary, CacheUser& user);
  ~Sink() override;

  void write(int window, const at::Tensor& hidden) override;

 private:
  struct File {
    Boundary boundary;
    int64_t first_window = 0;  // of the file
    std::shared_ptr<KeptWindows> kept;
    std::promise<void> in_memory;  // every window to be kept is
    std::promise<void> done;
    std::atomic<int> pending = 0;
    // The rest belongs to the HDF5 thread.
    std::unique_ptr<ActivationCacheWriter> writer;
    std::exception_ptr failure;
    size_t num_kept = 0;
    bool closed = false;
  };

  /// Starts copying a window to memory of the host; zeros behind its tokens.
  HostMemory copied(const at::Tensor& hidden);
  template <typename Action>
  static void guarded(File& file, Action action);
  static void create(CachedBoundaries& owner, File& file);
  static void write_chunk(CachedBoundaries& owner, File& file, int window,
                          const std::shared_ptr<EncodedChunk>& chunk, std::exception_ptr failure);
  static void finish_if_last(CachedBoundaries& owner, File& file);

  CachedBoundaries& owner_;
  CacheUser& user_;
  std::shared_ptr<File> file_;
};

}  // namespace coppice
