// Page-aligned memory that the kernel may write into (O_DIRECT) and a GPU driver may register.
#pragma once

#include <cstddef>
#include <span>

namespace coppice {

/// Owns an anonymous mapping (MADV_HUGEPAGE from 2 MiB on). Zero-filled, page-aligned; pages are
/// resident only once touched. Move-only. Throws std::bad_alloc if the mapping is refused.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;
  explicit AlignedBuffer(size_t bytes);
  ~AlignedBuffer();
  AlignedBuffer(AlignedBuffer&& other) noexcept;
  AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  std::span<std::byte> span() const { return {data_, bytes_}; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace coppice
