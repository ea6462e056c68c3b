// Hands out the windows of one boundary from a ring: asked for → read by the engine → decoded in
// the codec arena → taken by read().
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "pipeline/graph/cached_activations.h"
#include "storage/io/aligned_buffer.h"

namespace coppice {

class CachedBoundaries::Source final : public ActivationSource {
 public:
  Source(CachedBoundaries& owner, Boundary boundary, CacheUser& user);
  ~Source() override;

  int num_windows() const override { return int(owner_.options_.shape.windows); }
  void announce(std::span<const int> order) override;
  MicroBatch read(std::span<const int> windows) override;

 private:
  enum class Phase { kFree, kInFlight, kReady };
  struct Slot {
    Phase phase = Phase::kFree;
    int window = -1;
    AlignedBuffer stored;
    HostMemory raw;  // laid out as the device wants it
    CopyWait taken;  // by the device: before `raw` is written to again
    std::exception_ptr failure;

    void wait_until_taken();
  };
  struct State {
    ChunkLayout layout = ChunkLayout::kElements;
    int element_bytes = 0;
    std::mutex mutex;
    std::condition_variable changed;
    std::shared_ptr<const KeptWindows> kept;  // null: all are in the file
    int64_t first_window = 0;                 // of the file
    std::unique_ptr<ActivationCacheReader> reader;
    std::deque<Slot> slots;  // a deque: references stay valid when one is added
  };

  std::vector<int> lengths_of(int window) const;
  void open_file(const ActivationShape& shape);
  /// Starts copying what was decoded to the rows of `hidden`.
  void load(Slot& slot, const at::Tensor& hidden);

  // With the mutex held.
  int in_flight() const;
  Slot* find(int window);
  Slot* free_slot();
  void fetch_ahead();
  void fetch(Slot& slot, int window);
  void fetch_from_memory(Slot& slot);
  void fetch_from_file(Slot& slot, int64_t row);

  Slot& wait_for(int window);
  /// On a thread of the arena.
  template <typename Decode>
  static void finish(State& state, Slot& slot, Boundary boundary, RunMeters& meters, Decode decode);

  CachedBoundaries& owner_;
  CacheUser& user_;
  Boundary boundary_;
  std::shared_ptr<State> state_;
  std::deque<int> order_;
};

}  // namespace coppice
