#include "pipeline/graph/cached_activations.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <numeric>
#include <semaphore>
#include <stdexcept>
#include <utility>

#include "pipeline/telemetry/trace.h"
#include "storage/errors.h"
#include "storage/io/aligned_buffer.h"

namespace coppice {

namespace {

constexpr uint64_t kNewFileBytes = 4096;  // and the little more that is asked for anyway

bool is_inside_a_block(Boundary boundary) { return boundary.half % 2 == 1; }

int64_t total(const std::vector<int>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

std::string name_of(Boundary boundary, int window) {
  return to_string(boundary) + " window " + std::to_string(window);
}

/// The user's thread waits while this lives.
class Wait {
 public:
  template <typename Name>
  Wait(RunMeters& meters, CacheUser& user, Name name)
      : all_(meters.waits), own_(user.waits), slice_(meters.trace, Track::kWaits, name) {}

 private:
  Stopwatch all_, own_;
  TraceSlice slice_;
};

}  // namespace

// Windows handed to the sinks and not yet on disk.
struct CachedBoundaries::Quota {
  explicit Quota(int windows) : free(windows) {}
  std::counting_semaphore<> free;
};

// ── sink ────────────────────────────────────────────────────────────────────────────────────────
// device's thread: starts the copy → codec arena: waits for it, encodes → HDF5 thread: writes; the
// last one finishes the file.

class CachedBoundaries::Sink final : public ActivationSink {
 public:
  Sink(CachedBoundaries& owner, Boundary boundary, CacheUser& user)
      : owner_(owner), user_(user), file_(std::make_shared<File>()) {
    file_->boundary = boundary;
    file_->first_window = owner.first_in_file(boundary);
    file_->kept = std::make_shared<KeptWindows>(size_t(owner.windows_in_ram(boundary)));
    auto promise_future = file_->done.get_future().share();
    {
      std::lock_guard lock(owner.mutex_);
      owner.written_[boundary] = promise_future;
      owner.in_memory_.erase(boundary);
      if (int64_t(file_->kept->size()) == owner.options_.shape.windows) {
        owner.in_memory_[boundary] = file_->in_memory.get_future().share();
      }
      owner.kept_[boundary] = file_->kept;
    }
    owner.hdf5_.post([file = file_, &owner] {
      ActivationShape shape = owner.options_.shape;
      shape.windows -= file->first_window;
      if (shape.windows == 0) return;  // all in memory
      guarded(*file, [&] {
        owner.options_.with_room(kNewFileBytes, [&] {
          auto writer =
              std::make_unique<ActivationCacheWriter>(owner.path_of(file->boundary), shape);
          writer->reserve(0);
          file->writer = std::move(writer);
        });
      });
    });
  }

  ~Sink() override {
    owner_.hdf5_.post([file = file_, &owner = owner_] {
      file->closed = true;
      finish_if_last(owner, *file);
    });
  }

  void write(int window, const at::Tensor& hidden) override {
    const ActivationShape& shape = owner_.options_.shape;
    HostMemory raw = user_.device->host_memory(shape.chunk_bytes());
    const at::Tensor stored = hidden.to(scalar_type(shape.dtype));
    user_.device->download(stored, raw->first(stored.nbytes()));
    std::fill(raw->begin() + int64_t(stored.nbytes()), raw->end(), std::byte{0});
    const CopyWait arrival = user_.device->downloads();
    if (!owner_.behind_->free.try_acquire()) {
      const Wait wait(owner_.meters_, user_, "write behind");
      owner_.behind_->free.acquire();
    }
    ++file_->pending;
    owner_.codec_.enqueue([raw, arrival, window, file = file_, &owner = owner_] {
      auto chunk = std::make_shared<EncodedChunk>();
      std::exception_ptr failure;
      try {
        arrival();
        const Stopwatch busy(owner.meters_.encode);
        owner.meters_.encode.add_bytes(raw->size());
        const TraceSlice slice(owner.meters_.trace, Track::kEncode,
                               [&] { return name_of(file->boundary, window); });
        *chunk = encode_chunk(*raw, owner.options_.shape.element_bytes());
      } catch (...) {
        failure = std::current_exception();
      }
      owner.hdf5_.post([chunk, failure, window, file, &owner] {
        write_chunk(owner, *file, window, chunk, failure);
      });
    });
  }

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

  template <typename Action>
  static void guarded(File& file, Action action) {
    if (file.failure) return;
    try {
      action();
    } catch (...) {
      file.failure = std::current_exception();
    }
  }

  static void write_chunk(CachedBoundaries& owner, File& file, int window,
                          const std::shared_ptr<EncodedChunk>& chunk, std::exception_ptr failure) {
    if (failure && !file.failure) file.failure = failure;
    if (size_t(window) < file.kept->size() && !failure) {
      chunk->bytes.shrink_to_fit();
      (*file.kept)[size_t(window)] = chunk;
      if (++file.num_kept == file.kept->size()) file.in_memory.set_value();
    }
    if (window >= file.first_window) {
      guarded(file, [&] {
        const uint64_t bytes = chunk->bytes.size();
        owner.options_.with_room(bytes, [&] { file.writer->reserve(bytes); });
        const Stopwatch busy(owner.meters_.writes);
        const TraceSlice slice(owner.meters_.trace, Track::kCacheWrites,
                               [&] { return name_of(file.boundary, window); });
        file.writer->write(window - file.first_window, *chunk);
        owner.meters_.writes.add_bytes(chunk->bytes.size());
      });
    }
    owner.meters_.cache_stored.add_bytes(chunk->bytes.size());
    owner.meters_.cache_raw.add_bytes(owner.options_.shape.chunk_bytes());
    owner.behind_->free.release();
    --file.pending;
    finish_if_last(owner, file);
  }

  static void finish_if_last(CachedBoundaries& owner, File& file) {
    if (!file.closed || file.pending > 0) return;
    if (file.num_kept < file.kept->size()) {
      guarded(file, [&] {
        throw std::logic_error(to_string(file.boundary) + ": " + std::to_string(file.num_kept) +
                               " of " + std::to_string(file.kept->size()) +
                               " windows to be kept in memory were written");
      });
      file.in_memory.set_exception(file.failure);
    }
    guarded(file, [&] {
      if (file.writer == nullptr) return;
      const Stopwatch busy(owner.meters_.writes);
      const TraceSlice slice(owner.meters_.trace, Track::kCacheWrites,
                             [&] { return to_string(file.boundary) + " durable"; });
      const FileRecord record = file.writer->finish();
      if (!is_inside_a_block(file.boundary)) owner.on_durable_(file.boundary, record);
    });
    file.writer.reset();  // an unfinished file is removed here
    if (file.failure) {
      file.done.set_exception(file.failure);
    } else {
      file.done.set_value();
    }
  }

  CachedBoundaries& owner_;
  CacheUser& user_;
  std::shared_ptr<File> file_;
};

// ── source ──────────────────────────────────────────────────────────────────────────────────────
// A ring of windows: asked for → read by the engine → decoded in the arena → taken by read().

class CachedBoundaries::Source final : public ActivationSource {
 public:
  Source(CachedBoundaries& owner, Boundary boundary, CacheUser& user)
      : owner_(owner), user_(user), boundary_(boundary), state_(std::make_shared<State>()) {
    {
      std::lock_guard lock(owner.mutex_);
      const auto kept = owner.kept_.find(boundary);
      if (kept != owner.kept_.end()) state_->kept = kept->second;
    }
    ActivationShape shape = owner.options_.shape;
    const bool is_in_memory = state_->kept && int64_t(state_->kept->size()) == shape.windows;
    if (state_->kept) state_->first_window = owner.first_in_file(boundary);
    shape.windows -= state_->first_window;
    if (!is_in_memory) open_file(boundary, shape);
    state_->slots.resize(owner.options_.windows_ahead);
  }

  ~Source() override {
    std::unique_lock lock(state_->mutex);  // buffers must not be freed under reads in flight
    state_->changed.wait(lock, [this] { return in_flight() == 0; });
    for (Slot& slot : state_->slots) {  // nor under copies
      try {
        slot.wait_until_taken();
      } catch (const std::exception&) {  // a lost GPU copies nothing; who computes on it is told
      }
    }
  }

  int num_windows() const override { return int(owner_.options_.shape.windows); }

  void announce(std::span<const int> order) override {
    std::lock_guard lock(state_->mutex);
    order_.assign(order.begin(), order.end());
    fetch_ahead();
  }

  MicroBatch read(std::span<const int> windows) override {
    const ActivationShape& shape = owner_.options_.shape;
    MicroBatch batch;
    for (const int window : windows) {
      const std::vector<int> lengths = lengths_of(window);
      batch.lengths.insert(batch.lengths.end(), lengths.begin(), lengths.end());
    }
    batch.hidden =
        at::empty({total(batch.lengths), shape.hidden},
                  at::TensorOptions().dtype(owner_.options_.compute).device(user_.device->where()));
    int64_t first_token = 0;
    for (const int window : windows) {
      Slot& slot = wait_for(window);
      const int64_t tokens = total(lengths_of(window));
      const at::Tensor raw = at::from_blob(slot.raw->data(), {tokens, shape.hidden},
                                           at::TensorOptions().dtype(scalar_type(shape.dtype)));
      user_.device->load(raw, batch.hidden.narrow(0, first_token, tokens));
      slot.taken = user_.device->computed();
      first_token += tokens;
      std::lock_guard lock(state_->mutex);
      slot.phase = Phase::kFree;
      fetch_ahead();
    }
    if (user_.on_read) user_.on_read(int(windows.size()));
    return batch;
  }

 private:
  enum class Phase { kFree, kInFlight, kReady };
  struct Slot {
    Phase phase = Phase::kFree;
    int window = -1;
    AlignedBuffer stored;
    HostMemory raw;
    CopyWait taken;  // by the device: before `raw` is written to again
    std::exception_ptr failure;

    void wait_until_taken() {
      if (taken) std::exchange(taken, nullptr)();
    }
  };
  struct State {
    std::mutex mutex;
    std::condition_variable changed;
    std::shared_ptr<const KeptWindows> kept;  // null: all are in the file
    int64_t first_window = 0;                 // of the file
    std::unique_ptr<ActivationCacheReader> reader;
    std::deque<Slot> slots;  // a deque: references stay valid when one is added
  };

  std::vector<int> lengths_of(int window) const {
    const CacheOptions& options = owner_.options_;
    if (options.lengths.empty()) return {int(options.shape.seqlen)};
    return options.lengths.at(size_t(window));
  }

  void open_file(Boundary boundary, const ActivationShape& shape) {
    owner_.hdf5_.run([&] {
      state_->reader = std::make_unique<ActivationCacheReader>(owner_.path_of(boundary));
    });
    if (!(state_->reader->shape() == shape)) {
      throw CorruptionError(owner_.path_of(boundary).string(), 0,
                            "the shape of this job's activations", "another shape");
    }
  }

  int in_flight() const {
    int count = 0;
    for (const Slot& slot : state_->slots) count += slot.phase == Phase::kInFlight;
    return count;
  }

  Slot* find(int window) {
    for (Slot& slot : state_->slots) {
      if (slot.phase != Phase::kFree && slot.window == window) return &slot;
    }
    return nullptr;
  }

  Slot* free_slot() {
    for (Slot& slot : state_->slots) {
      if (slot.phase == Phase::kFree) return &slot;
    }
    return nullptr;
  }

  void fetch_ahead() {  // with the mutex held
    while (!order_.empty()) {
      if (find(order_.front()) == nullptr) {
        Slot* slot = free_slot();
        if (slot == nullptr) return;
        fetch(*slot, order_.front());
      }
      order_.pop_front();
    }
  }

  Slot& wait_for(int window) {
    std::unique_lock lock(state_->mutex);
    Slot* slot = find(window);
    if (slot == nullptr) {  // nobody announced it: one more slot rather than a deadlock
      slot = free_slot();
      if (slot == nullptr) slot = &state_->slots.emplace_back();
      fetch(*slot, window);
    }
    if (slot->phase == Phase::kInFlight) {
      const Wait wait(owner_.meters_, user_, [&] { return name_of(boundary_, window); });
      state_->changed.wait(lock, [&] { return slot->phase == Phase::kReady; });
    }
    if (slot->failure) {
      slot->phase = Phase::kFree;
      std::rethrow_exception(std::exchange(slot->failure, nullptr));
    }
    return *slot;
  }

  void fetch(Slot& slot, int window) {  // with the mutex held
    if (!slot.raw) slot.raw = user_.device->host_memory(owner_.options_.shape.chunk_bytes());
    slot.window = window;
    slot.phase = Phase::kInFlight;
    if (state_->kept && size_t(window) < state_->kept->size()) {
      owner_.codec_.enqueue([state = state_, &slot, chunk = (*state_->kept)[size_t(window)],
                             element_bytes = owner_.options_.shape.element_bytes(),
                             boundary = boundary_, &meters = owner_.meters_] {
        finish(*state, slot, [&] {
          slot.wait_until_taken();
          const Stopwatch busy(meters.decode);
          meters.decode.add_bytes(slot.raw->size());
          const TraceSlice slice(meters.trace, Track::kDecode,
                                 [&] { return name_of(boundary, slot.window); });
          decode_chunk(chunk->bytes, chunk->compressed, chunk->xxh3, element_bytes, *slot.raw);
        });
      });
      return;
    }
    fetch_from_file(slot, window - state_->first_window);
  }

  void fetch_from_file(Slot& slot, int64_t row) {
    const ReadFile& file = state_->reader->file();
    const ChunkLocation& chunk = state_->reader->chunk(row);
    const uint64_t align = file.alignment();
    const uint64_t begin = chunk.offset / align * align;
    const uint64_t skipped = chunk.offset - begin;
    const uint64_t needed = skipped + chunk.stored_bytes;
    const uint64_t bytes = (needed + align - 1) / align * align;
    if (slot.stored.bytes() < bytes) {
      slot.stored = AlignedBuffer(owner_.options_.shape.chunk_bytes() + 3 * align + 4096);
    }
    ReadBatch batch{
        state_, {{&file, begin, slot.stored.span().first(bytes), needed}}, Urgency::kNow};
    owner_.engine_.submit(
        std::move(batch),
        [state = state_, &slot, row, skipped, needed, &arena = owner_.codec_, boundary = boundary_,
         &meters = owner_.meters_](ReadBatch, std::exception_ptr failure) {
          arena.enqueue([state, &slot, row, skipped, needed, failure, boundary, &meters] {
            finish(*state, slot, [&] {
              if (failure) std::rethrow_exception(failure);
              slot.wait_until_taken();
              const Stopwatch busy(meters.decode);
              meters.decode.add_bytes(slot.raw->size());
              const TraceSlice slice(meters.trace, Track::kDecode,
                                     [&] { return name_of(boundary, slot.window); });
              state->reader->decode(row, slot.stored.span().subspan(skipped, needed - skipped),
                                    *slot.raw);
            });
          });
        });
  }

  template <typename Decode>
  static void finish(State& state, Slot& slot, Decode decode) {
    std::exception_ptr failure;
    try {
      decode();
    } catch (...) {
      failure = std::current_exception();
    }
    std::lock_guard lock(state.mutex);
    slot.failure = failure;
    slot.phase = Phase::kReady;
    state.changed.notify_all();
  }

  CachedBoundaries& owner_;
  CacheUser& user_;
  Boundary boundary_;
  std::shared_ptr<State> state_;
  std::deque<int> order_;
};

// ── boundaries ──────────────────────────────────────────────────────────────────────────────────

CachedBoundaries::CachedBoundaries(CacheOptions options, IoEngine& engine, SerialExecutor& hdf5,
                                   RunMeters& meters,
                                   std::function<void(Boundary, const FileRecord&)> on_durable)
    : options_(std::move(options)),
      engine_(engine),
      hdf5_(hdf5),
      meters_(meters),
      on_durable_(std::move(on_durable)),
      behind_(std::make_shared<Quota>(options_.windows_behind)),
      codec_(options_.codec_threads, /*reserved_for_masters=*/0) {}

CachedBoundaries::~CachedBoundaries() {
  std::map<Boundary, std::shared_future<void>> written;
  {
    std::lock_guard lock(mutex_);
    written = written_;
  }
  for (auto& [boundary, future] : written) future.wait();
}

std::filesystem::path CachedBoundaries::path_of(Boundary boundary) const {
  return options_.directory / (to_string(boundary) + ".h5");
}

std::unique_ptr<ActivationSource> CachedBoundaries::source(Boundary boundary, CacheUser& user) {
  {
    const Wait wait(meters_, user, [&] { return to_string(boundary) + " durable"; });
    if (const std::shared_future<void> there = readable(boundary); there.valid()) there.get();
  }
  return std::make_unique<Source>(*this, boundary, user);
}

std::unique_ptr<ActivationSink> CachedBoundaries::sink(Boundary boundary, CacheUser& user) {
  if (unwanted_ && unwanted_(boundary)) return nullptr;
  return std::make_unique<Sink>(*this, boundary, user);
}

std::shared_future<void> CachedBoundaries::readable(Boundary boundary) {
  std::lock_guard lock(mutex_);
  for (const auto* futures : {&in_memory_, &written_}) {
    const auto found = futures->find(boundary);
    if (found != futures->end()) return found->second;
  }
  return {};
}

void CachedBoundaries::wait_durable(Boundary boundary) {
  std::shared_future<void> future;
  {
    std::lock_guard lock(mutex_);
    const auto found = written_.find(boundary);
    if (found == written_.end()) return;
    future = found->second;
  }
  future.get();
}

int64_t CachedBoundaries::windows_in_ram(Boundary boundary) const {
  const int64_t wanted =
      is_inside_a_block(boundary) ? options_.targets_in_ram : options_.inputs_in_ram;
  return std::min(wanted, options_.shape.windows);
}

int64_t CachedBoundaries::first_in_file(Boundary boundary) const {
  return is_inside_a_block(boundary) ? windows_in_ram(boundary) : 0;
}

void CachedBoundaries::forget(Boundary boundary) {
  std::lock_guard lock(mutex_);
  kept_.erase(boundary);
  in_memory_.erase(boundary);
}

void CachedBoundaries::expire(Boundary boundary) {
  forget(boundary);
  std::error_code ignored;  // an undeleted file costs space, not correctness
  std::filesystem::remove(path_of(boundary), ignored);
}

}  // namespace coppice
