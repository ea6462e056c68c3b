// Mirrors the kernel's two tables; an entry of ours names what the kernel holds at the same index.
#include "storage/io/ring_tables.h"

#include <liburing.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>

namespace coppice {
namespace {

// A model has tens of slots and slabs, a checkpoint hundreds of shards; the soft limit of open
// files, 1024 by default, bounds the table of files too.
constexpr size_t kMaxBuffers = 1024;
constexpr size_t kMaxFiles = 1024;
constexpr size_t kMaxPieceBytes = size_t{1} << 30;  // the kernel answers EFAULT above

int make_empty(const RingRegister& tell, unsigned ring_fd, unsigned opcode, size_t entries) {
  io_uring_rsrc_register table{};
  table.nr = static_cast<unsigned>(entries);
  table.flags = IORING_RSRC_REGISTER_SPARSE;
  return std::min(0, tell(ring_fd, opcode, &table, sizeof table));
}

int put(const RingRegister& tell, unsigned ring_fd, unsigned opcode, size_t index,
        const void* entry) {
  io_uring_rsrc_update2 update{};
  update.offset = static_cast<unsigned>(index);
  update.data = reinterpret_cast<uintptr_t>(entry);
  update.nr = 1;
  return std::min(0, tell(ring_fd, opcode, &update, sizeof update));
}

/// First free entry, or the table's size.
template <class Entry>
size_t free_entry(const std::vector<Entry>& table) {
  return static_cast<size_t>(std::ranges::find(table, RingTables::Owner{0}, &Entry::owner) -
                             table.begin());
}

}  // namespace

RingCalls::RingCalls() : setup(io_uring_queue_init_params), tell(io_uring_register) {}

int RingTables::put_buffer(size_t index, std::span<std::byte> memory) {
  const iovec entry{memory.data(), memory.size()};
  return put(tell_, ring_fd_, IORING_REGISTER_BUFFERS_UPDATE, index, &entry);
}

int RingTables::put_file(size_t index, int fd) {
  return put(tell_, ring_fd_, IORING_REGISTER_FILES_UPDATE2, index, &fd);
}

int RingTables::add_buffer(Owner owner, std::span<std::byte> piece) {
  if (buffers_.empty()) {
    const int refusal = make_empty(tell_, ring_fd_, IORING_REGISTER_BUFFERS2, kMaxBuffers);
    if (refusal != 0) return refusal;
    buffers_.resize(kMaxBuffers);
  }
  const size_t index = free_entry(buffers_);
  if (index == buffers_.size()) return -ENOSPC;
  const int refusal = put_buffer(index, piece);
  if (refusal == 0) buffers_[index] = {owner, piece};
  return refusal;
}

int RingTables::add_file(Owner owner, int fd) {
  if (files_.empty()) {
    const int refusal = make_empty(tell_, ring_fd_, IORING_REGISTER_FILES2, kMaxFiles);
    if (refusal != 0) return refusal;
    files_.resize(kMaxFiles);
  }
  const size_t index = free_entry(files_);
  if (index == files_.size()) return -ENOSPC;
  const int refusal = put_file(index, fd);
  if (refusal == 0) files_[index] = {owner, fd};
  return refusal;
}

RingTables::Taken RingTables::add(const LongLived& what) {
  Taken taken{.owner = ++last_owner_};
  for (std::span<std::byte> rest : what.memory) {
    while (!rest.empty() && taken.memory_error == 0) {
      const std::span<std::byte> piece = rest.first(std::min(rest.size(), kMaxPieceBytes));
      taken.memory_error = -add_buffer(taken.owner, piece);
      if (taken.memory_error == 0) taken.memory_bytes += piece.size();
      rest = rest.subspan(piece.size());
    }
  }
  for (const ReadFile* file : what.files) {
    if (taken.file_error == 0) taken.file_error = -add_file(taken.owner, file->fd());
    if (taken.file_error == 0) ++taken.files;
  }
  return taken;
}

void RingTables::remove(Owner owner) {
  // Taking an entry out is not refused for what was put in; were it, the index stays unused and
  // whoever maps that memory again is read into the ordinary way.
  for (size_t i = 0; i < buffers_.size(); ++i) {
    if (buffers_[i].owner == owner) {
      buffers_[i].memory = {};
      if (put_buffer(i, {}) == 0) buffers_[i].owner = 0;
    }
  }
  for (size_t i = 0; i < files_.size(); ++i) {
    if (files_[i].owner == owner) {
      files_[i].fd = -1;
      if (put_file(i, -1) == 0) files_[i].owner = 0;
    }
  }
}

std::optional<unsigned> RingTables::buffer_of(std::span<const std::byte> bytes) const {
  const auto holds = [&](const Buffer& buffer) {
    return buffer.memory.data() <= bytes.data() &&
           bytes.data() + bytes.size() <= buffer.memory.data() + buffer.memory.size();
  };
  const auto found = std::ranges::find_if(buffers_, holds);
  if (found == buffers_.end()) return std::nullopt;
  return static_cast<unsigned>(found - buffers_.begin());
}

std::optional<unsigned> RingTables::file_of(int fd) const {
  const auto found = std::ranges::find(files_, fd, &File::fd);
  if (found == files_.end()) return std::nullopt;
  return static_cast<unsigned>(found - files_.begin());
}

}  // namespace coppice
