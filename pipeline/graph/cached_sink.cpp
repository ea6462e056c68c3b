#include "pipeline/graph/cached_sink.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "pipeline/graph/cache_trace.h"
#include "stages/ops/byte_planes.h"

namespace coppice {
namespace {

constexpr uint64_t kNewFileBytes = 4096;  // and the little more that is asked for anyway

}  // namespace

CachedBoundaries::Sink::Sink(CachedBoundaries& owner, Boundary boundary, CacheUser& user)
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
  owner.hdf5_.post([file = file_, &owner] { create(owner, *file); });
}

CachedBoundaries::Sink::~Sink() {
  owner_.hdf5_.post([file = file_, &owner = owner_] {
    file->closed = true;
    finish_if_last(owner, *file);
  });
}

HostMemory CachedBoundaries::Sink::copied(const at::Tensor& hidden) {
  const ActivationShape& shape = owner_.options_.shape;
  HostMemory raw = user_.device->host_memory(shape.chunk_bytes());
  const at::Tensor stored = hidden.to(scalar_type(shape.dtype));
  const at::Tensor chunk = user_.device->chunk_layout() == ChunkLayout::kPlanes
                               ? split_planes(stored, shape.seqlen * shape.hidden)
                               : stored;
  user_.device->download(chunk, raw->first(chunk.nbytes()));
  std::fill(raw->begin() + int64_t(chunk.nbytes()), raw->end(), std::byte{0});
  return raw;
}

void CachedBoundaries::Sink::write(int window, const at::Tensor& hidden) {
  const HostMemory raw = copied(hidden);
  const CopyWait arrival = user_.device->downloads();
  if (!owner_.behind_->free.try_acquire()) {
    const CacheWait wait(owner_.meters_, user_, "write behind");
    owner_.behind_->free.acquire();
  }
  ++file_->pending;
  owner_.codec_.enqueue(
      [raw, arrival, layout = user_.device->chunk_layout(), window, file = file_, &owner = owner_] {
        auto chunk = std::make_shared<EncodedChunk>();
        std::exception_ptr failure;
        try {
          arrival();
          const Stopwatch busy(owner.meters_.encode);
          owner.meters_.encode.add_bytes(raw->size());
          const TraceSlice slice(owner.meters_.trace, Track::kEncode,
                                 [&] { return name_of(file->boundary, window); });
          *chunk = encode_chunk(*raw, owner.options_.shape.element_bytes(), layout);
        } catch (...) {
          failure = std::current_exception();
        }
        owner.hdf5_.post([chunk, failure, window, file, &owner] {
          write_chunk(owner, *file, window, chunk, failure);
        });
      });
}

template <typename Action>
void CachedBoundaries::Sink::guarded(File& file, Action action) {
  if (file.failure) return;
  try {
    action();
  } catch (...) {
    file.failure = std::current_exception();
  }
}

void CachedBoundaries::Sink::create(CachedBoundaries& owner, File& file) {
  ActivationShape shape = owner.options_.shape;
  shape.windows -= file.first_window;
  if (shape.windows == 0) return;  // all in memory
  guarded(file, [&] {
    owner.options_.with_room(kNewFileBytes, [&] {
      auto writer = std::make_unique<ActivationCacheWriter>(owner.path_of(file.boundary), shape);
      writer->reserve(0);
      file.writer = std::move(writer);
    });
  });
}

void CachedBoundaries::Sink::write_chunk(CachedBoundaries& owner, File& file, int window,
                                         const std::shared_ptr<EncodedChunk>& chunk,
                                         std::exception_ptr failure) {
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

void CachedBoundaries::Sink::finish_if_last(CachedBoundaries& owner, File& file) {
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
    if (!file.boundary.is_inside_a_block()) owner.on_durable_(file.boundary, record);
  });
  file.writer.reset();  // an unfinished file is removed here
  if (file.failure) {
    file.done.set_exception(file.failure);
  } else {
    file.done.set_value();
  }
}

}  // namespace coppice
