#include "pipeline/graph/cached_source.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "pipeline/graph/cache_trace.h"
#include "stages/ops/byte_planes.h"
#include "storage/errors.h"

namespace coppice {
namespace {

int64_t total(const std::vector<int>& lengths) {
  return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
}

}  // namespace

void CachedBoundaries::Source::Slot::wait_until_taken() {
  if (taken) std::exchange(taken, nullptr)();
}

CachedBoundaries::Source::Source(CachedBoundaries& owner, Boundary boundary, CacheUser& user)
    : owner_(owner), user_(user), boundary_(boundary), state_(std::make_shared<State>()) {
  ActivationShape shape = owner.options_.shape;
  state_->layout = user.device->chunk_layout();
  state_->element_bytes = shape.element_bytes();
  {
    std::lock_guard lock(owner.mutex_);
    const auto kept = owner.kept_.find(boundary);
    if (kept != owner.kept_.end()) state_->kept = kept->second;
  }
  const bool is_in_memory = state_->kept && int64_t(state_->kept->size()) == shape.windows;
  if (state_->kept) state_->first_window = owner.first_in_file(boundary);
  shape.windows -= state_->first_window;
  if (!is_in_memory) open_file(shape);
  state_->slots.resize(owner.options_.windows_ahead);
}

CachedBoundaries::Source::~Source() {
  std::unique_lock lock(state_->mutex);  // buffers must not be freed under reads in flight
  state_->changed.wait(lock, [this] { return in_flight() == 0; });
  for (Slot& slot : state_->slots) {  // nor under copies
    try {
      slot.wait_until_taken();
    } catch (const std::exception&) {  // a lost GPU copies nothing; who computes on it is told
    }
  }
}

void CachedBoundaries::Source::announce(std::span<const int> order) {
  std::lock_guard lock(state_->mutex);
  order_.assign(order.begin(), order.end());
  fetch_ahead();
}

MicroBatch CachedBoundaries::Source::read(std::span<const int> windows) {
  MicroBatch batch;
  for (const int window : windows) {
    const std::vector<int> lengths = lengths_of(window);
    batch.lengths.insert(batch.lengths.end(), lengths.begin(), lengths.end());
  }
  batch.hidden =
      at::empty({total(batch.lengths), owner_.options_.shape.hidden},
                at::TensorOptions().dtype(owner_.options_.compute).device(user_.device->where()));
  int64_t first_token = 0;
  for (const int window : windows) {
    Slot& slot = wait_for(window);
    const int64_t tokens = total(lengths_of(window));
    load(slot, batch.hidden.narrow(0, first_token, tokens));
    slot.taken = user_.device->computed();
    first_token += tokens;
    std::lock_guard lock(state_->mutex);
    slot.phase = Phase::kFree;
    fetch_ahead();
  }
  if (user_.on_read) user_.on_read(int(windows.size()));
  return batch;
}

void CachedBoundaries::Source::load(Slot& slot, const at::Tensor& hidden) {
  Device& device = *user_.device;
  const at::ScalarType dtype = scalar_type(owner_.options_.shape.dtype);
  if (state_->layout == ChunkLayout::kElements) {
    return device.load(
        at::from_blob(slot.raw->data(), hidden.sizes(), at::TensorOptions().dtype(dtype)), hidden);
  }
  const int64_t width = state_->element_bytes;
  const at::Tensor split = at::from_blob(
      slot.raw->data(), {width, int64_t(slot.raw->size()) / width}, at::TensorOptions(at::kByte));
  const at::Tensor planes =
      at::empty(split.sizes(), at::TensorOptions(at::kByte).device(device.where()));
  device.load(split, planes);
  hidden.copy_(join_planes(planes, hidden.sizes(), dtype));
}

std::vector<int> CachedBoundaries::Source::lengths_of(int window) const {
  const CacheOptions& options = owner_.options_;
  if (options.lengths.empty()) return {int(options.shape.seqlen)};
  return options.lengths.at(size_t(window));
}

void CachedBoundaries::Source::open_file(const ActivationShape& shape) {
  owner_.hdf5_.run(
      [&] { state_->reader = std::make_unique<ActivationCacheReader>(owner_.path_of(boundary_)); });
  if (!(state_->reader->shape() == shape)) {
    throw CorruptionError(owner_.path_of(boundary_).string(), 0,
                          "the shape of this job's activations", "another shape");
  }
}

int CachedBoundaries::Source::in_flight() const {
  const auto& slots = state_->slots;
  return int(std::count_if(slots.begin(), slots.end(),
                           [](const Slot& slot) { return slot.phase == Phase::kInFlight; }));
}

CachedBoundaries::Source::Slot* CachedBoundaries::Source::find(int window) {
  for (Slot& slot : state_->slots) {
    if (slot.phase != Phase::kFree && slot.window == window) return &slot;
  }
  return nullptr;
}

CachedBoundaries::Source::Slot* CachedBoundaries::Source::free_slot() {
  for (Slot& slot : state_->slots) {
    if (slot.phase == Phase::kFree) return &slot;
  }
  return nullptr;
}

void CachedBoundaries::Source::fetch_ahead() {
  while (!order_.empty()) {
    if (find(order_.front()) == nullptr) {
      Slot* slot = free_slot();
      if (slot == nullptr) return;
      fetch(*slot, order_.front());
    }
    order_.pop_front();
  }
}

CachedBoundaries::Source::Slot& CachedBoundaries::Source::wait_for(int window) {
  std::unique_lock lock(state_->mutex);
  Slot* slot = find(window);
  if (slot == nullptr) {  // nobody announced it: one more slot rather than a deadlock
    slot = free_slot();
    if (slot == nullptr) slot = &state_->slots.emplace_back();
    fetch(*slot, window);
  }
  if (slot->phase == Phase::kInFlight) {
    const CacheWait wait(owner_.meters_, user_, [&] { return name_of(boundary_, window); });
    state_->changed.wait(lock, [&] { return slot->phase == Phase::kReady; });
  }
  if (slot->failure) {
    slot->phase = Phase::kFree;
    std::rethrow_exception(std::exchange(slot->failure, nullptr));
  }
  return *slot;
}

void CachedBoundaries::Source::fetch(Slot& slot, int window) {
  if (!slot.raw) slot.raw = user_.device->host_memory(owner_.options_.shape.chunk_bytes());
  slot.window = window;
  if (state_->kept && size_t(window) < state_->kept->size()) {
    fetch_from_memory(slot);
  } else {
    fetch_from_file(slot, window - state_->first_window);
  }
  // Last: what throws above has started nothing, and the destructor waits for all in flight. What
  // was started cannot be finished before, it needs the mutex.
  slot.phase = Phase::kInFlight;
}

void CachedBoundaries::Source::fetch_from_memory(Slot& slot) {
  owner_.codec_.enqueue([state = state_, &slot, chunk = (*state_->kept)[size_t(slot.window)],
                         boundary = boundary_, &meters = owner_.meters_] {
    finish(*state, slot, boundary, meters, [&] {
      decode_chunk(chunk->bytes, chunk->compressed, chunk->xxh3, state->element_bytes, *slot.raw,
                   state->layout);
    });
  });
}

void CachedBoundaries::Source::fetch_from_file(Slot& slot, int64_t row) {
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
  ReadBatch batch{state_, {{&file, begin, slot.stored.span().first(bytes), needed}}, Urgency::kNow};
  owner_.engine_.submit(
      std::move(batch),
      [state = state_, &slot, row, skipped, needed, &arena = owner_.codec_, boundary = boundary_,
       &meters = owner_.meters_](ReadBatch, std::exception_ptr failure) {
        arena.enqueue([state, &slot, row, skipped, needed, failure, boundary, &meters] {
          finish(*state, slot, boundary, meters, [&] {
            if (failure) std::rethrow_exception(failure);
            state->reader->decode(row, slot.stored.span().subspan(skipped, needed - skipped),
                                  *slot.raw, state->layout);
          });
        });
      });
}

template <typename Decode>
void CachedBoundaries::Source::finish(State& state, Slot& slot, Boundary boundary,
                                      RunMeters& meters, Decode decode) {
  std::exception_ptr failure;
  try {
    slot.wait_until_taken();
    const Stopwatch busy(meters.decode);
    meters.decode.add_bytes(slot.raw->size());
    const TraceSlice slice(meters.trace, Track::kDecode,
                           [&] { return name_of(boundary, slot.window); });
    decode();
  } catch (...) {
    failure = std::current_exception();
  }
  std::lock_guard lock(state.mutex);
  slot.failure = failure;
  slot.phase = Phase::kReady;
  state.changed.notify_all();
}

}  // namespace coppice
