// Anonymous mappings instead of aligned allocation: they register with a ring and with a GPU driver
// on every kernel, and huge pages make registration and translation cheap.
#include "storage/io/aligned_buffer.h"

#include <sys/mman.h>

#include <new>
#include <utility>

namespace coppice {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) {
  if (bytes == 0) return;  // mmap refuses an empty mapping; an empty buffer is a fine buffer
  void* mapping = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  // A kernel without huge pages says EINVAL: slower, not wrong.
  if (bytes >= kHugePageBytes) madvise(mapping, bytes, MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(mapping);
  bytes_ = bytes;
}

AlignedBuffer::~AlignedBuffer() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}

AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
  AlignedBuffer taken(std::move(other));
  std::swap(data_, taken.data_);  // what was owned before is unmapped with `taken`
  std::swap(bytes_, taken.bytes_);
  return *this;
}

}  // namespace coppice
