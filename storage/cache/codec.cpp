#include "storage/cache/codec.h"

// The literal mode and frame inspection are not in zstd's stable part. They have kept their meaning
// since 1.4, and the interoperability test fails if they ever change.
#define ZSTD_STATIC_LINKING_ONLY
#include <fmt/format.h>
#include <xxhash.h>
#include <zstd.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

namespace coppice {
namespace {

static_assert(std::endian::native == std::endian::little, "elements are stored little-endian");

// Frame layout: RFC 8878, section 3.1.1.
constexpr uint32_t kFrameMagic = 0xFD2FB528;
constexpr uint8_t kFrameDescriptor = 0xE0;  // 8-byte content size, single segment, no checksum
constexpr size_t kFrameHeaderBytes = 4 + 1 + 8;
constexpr size_t kBlockHeaderBytes = 3;
constexpr size_t kMaxBlockBytes = size_t{128} << 10;

// Negative levels skip ahead between match attempts; at -1000 hardly any attempt is left and zstd
// is the Huffman coder that is wanted. Exponents repeat as symbols, not as strings.
constexpr int kHuffmanOnlyLevel = -1000;

/// Memory that keeps its size between chunks, so that a thread touches new pages once.
class Scratch {
 public:
  std::byte* at_least(size_t bytes) {
    if (bytes > bytes_) {
      memory_ = std::make_unique_for_overwrite<std::byte[]>(bytes);
      bytes_ = bytes;
    }
    return memory_.get();
  }

 private:
  std::unique_ptr<std::byte[]> memory_;
  size_t bytes_ = 0;
};

struct FreeCompressor {
  void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
};
struct FreeDecompressor {
  void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
};

thread_local std::unique_ptr<ZSTD_CCtx, FreeCompressor> compressor;
thread_local std::unique_ptr<ZSTD_DCtx, FreeDecompressor> decompressor;
thread_local Scratch plane_scratch;
thread_local Scratch frame_scratch;

size_t checked(size_t zstd_result) {
  if (ZSTD_isError(zstd_result)) {
    throw std::runtime_error(fmt::format("zstd: {}", ZSTD_getErrorName(zstd_result)));
  }
  return zstd_result;
}

ZSTD_CCtx* huffman_compressor() {
  if (compressor == nullptr) {
    compressor.reset(ZSTD_createCCtx());
    if (compressor == nullptr) throw std::bad_alloc();
    checked(ZSTD_CCtx_setParameter(compressor.get(), ZSTD_c_compressionLevel, kHuffmanOnlyLevel));
    // Negative levels leave literals raw unless told.
    checked(
        ZSTD_CCtx_setParameter(compressor.get(), ZSTD_c_literalCompressionMode, ZSTD_ps_enable));
  }
  return compressor.get();
}

void check_elements(size_t bytes, int element_bytes) {
  if (element_bytes != 2 && element_bytes != 4) {
    throw std::invalid_argument(fmt::format("elements have 2 or 4 bytes, not {}", element_bytes));
  }
  if (bytes % element_bytes != 0) {
    throw std::invalid_argument(
        fmt::format("{} bytes are no whole number of {}-byte elements", bytes, element_bytes));
  }
}

/// Byte `plane` (0 is the lowest) of every element. `stride` is a constant at each call, so that
/// the loop vectorises.
inline void gather_plane(const std::byte* __restrict elements, size_t num_elements, int stride,
                         int plane, std::byte* __restrict out) {
  for (size_t i = 0; i < num_elements; ++i) out[i] = elements[i * stride + plane];
}

void split_plane(const std::byte* elements, size_t num_elements, int element_bytes, int plane,
                 std::byte* out) {
  if (element_bytes == 2) {
    gather_plane(elements, num_elements, 2, plane, out);
  } else {
    gather_plane(elements, num_elements, 4, plane, out);
  }
}

void join_planes(const std::byte* __restrict planes, size_t num_elements, int element_bytes,
                 std::byte* __restrict elements) {
  const auto byte = [planes, num_elements](size_t plane, size_t i) {
    return std::to_integer<uint32_t>(planes[plane * num_elements + i]);
  };
  if (element_bytes == 2) {
    for (size_t i = 0; i < num_elements; ++i) {
      const uint16_t value = static_cast<uint16_t>(byte(0, i) | byte(1, i) << 8);
      std::memcpy(elements + 2 * i, &value, sizeof value);
    }
  } else {
    for (size_t i = 0; i < num_elements; ++i) {
      const uint32_t value = byte(0, i) | byte(1, i) << 8 | byte(2, i) << 16 | byte(3, i) << 24;
      std::memcpy(elements + 4 * i, &value, sizeof value);
    }
  }
}

/// A chunk to be encoded, however it lies in memory.
class Planes {
 public:
  Planes(std::span<const std::byte> chunk, int element_bytes, ChunkLayout layout)
      : chunk_(chunk), element_bytes_(element_bytes), layout_(layout) {}

  size_t bytes() const { return chunk_.size() / element_bytes_; }  // of one, as many as elements

  void copy(int plane, size_t first, size_t count, std::byte* out) const {
    if (layout_ == ChunkLayout::kPlanes) {
      std::memcpy(out, chunk_.data() + plane * bytes() + first, count);
    } else {
      split_plane(chunk_.data() + first * element_bytes_, count, element_bytes_, plane, out);
    }
  }

  /// In place, or in this thread's scratch memory until the next chunk.
  const std::byte* highest() const {
    const int plane = element_bytes_ - 1;
    if (layout_ == ChunkLayout::kPlanes) return chunk_.data() + plane * bytes();
    std::byte* split = plane_scratch.at_least(bytes());
    copy(plane, 0, bytes(), split);
    return split;
  }

  std::vector<std::byte> elements() const {
    if (layout_ == ChunkLayout::kElements) return {chunk_.begin(), chunk_.end()};
    std::vector<std::byte> joined(chunk_.size());
    join_planes(chunk_.data(), bytes(), element_bytes_, joined.data());
    return joined;
  }

 private:
  std::span<const std::byte> chunk_;
  int element_bytes_;
  ChunkLayout layout_;
};

/// The blocks (headers included, frame header not) of the Huffman-coded highest plane. They lie in
/// this thread's scratch memory until the next call.
std::span<const std::byte> compress_high_plane(const Planes& planes) {
  const std::byte* plane = planes.highest();
  const size_t num_elements = planes.bytes();
  const size_t capacity = ZSTD_compressBound(num_elements);
  std::byte* frame = frame_scratch.at_least(capacity);
  const size_t frame_bytes =
      checked(ZSTD_compress2(huffman_compressor(), frame, capacity, plane, num_elements));
  const size_t header_bytes = checked(ZSTD_frameHeaderSize(frame, frame_bytes));
  return {frame + header_bytes, frame_bytes - header_bytes};
}

size_t num_blocks(size_t plane_bytes) {
  return (plane_bytes + kMaxBlockBytes - 1) / kMaxBlockBytes;
}

std::byte* put_frame_header(std::byte* out, uint64_t content_bytes) {
  std::memcpy(out, &kFrameMagic, 4);
  std::memcpy(out + 4, &kFrameDescriptor, 1);
  std::memcpy(out + 5, &content_bytes, 8);
  return out + kFrameHeaderBytes;
}

/// One low plane as raw blocks, split straight into place.
std::byte* put_raw_plane(std::byte* out, const Planes& planes, int plane) {
  for (size_t first = 0; first < planes.bytes(); first += kMaxBlockBytes) {
    const size_t block_bytes = std::min(kMaxBlockBytes, planes.bytes() - first);
    const uint32_t header = static_cast<uint32_t>(block_bytes) << 3;  // type raw, not the last
    std::memcpy(out, &header, kBlockHeaderBytes);
    planes.copy(plane, first, block_bytes, out + kBlockHeaderBytes);
    out += kBlockHeaderBytes + block_bytes;
  }
  return out;
}

EncodedChunk with_checksum(std::vector<std::byte> bytes, bool compressed) {
  const uint64_t xxh3 = XXH3_64bits(bytes.data(), bytes.size());
  return {std::move(bytes), compressed, xxh3};
}

void check_checksum(std::span<const std::byte> stored, uint64_t recorded) {
  const uint64_t found = XXH3_64bits(stored.data(), stored.size());
  if (found != recorded) {
    throw std::runtime_error(
        fmt::format("XXH3-64 {:016x} of {} stored bytes, the index records {:016x}", found,
                    stored.size(), recorded));
  }
}

}  // namespace

// One frame is put together from two sources. Through zstd's own streaming, the mantissa bytes
// would pass a match finder and a histogram just to come out raw, and the literal mode cannot be
// changed inside a frame. So the raw blocks are written here, and the blocks of a frame made of the
// highest plane alone are appended. That is a valid frame: raw blocks leave entropy tables and
// repeat offsets untouched, and the appended blocks only refer to their own plane.
EncodedChunk encode_chunk(std::span<const std::byte> chunk, int element_bytes, ChunkLayout layout) {
  check_elements(chunk.size(), element_bytes);
  if (chunk.empty()) return with_checksum({}, false);

  const Planes planes(chunk, element_bytes, layout);
  const size_t plane_bytes = planes.bytes();
  const size_t low_planes = element_bytes - 1;
  const std::span<const std::byte> high_blocks = compress_high_plane(planes);
  const size_t frame_bytes =
      kFrameHeaderBytes + low_planes * (plane_bytes + num_blocks(plane_bytes) * kBlockHeaderBytes) +
      high_blocks.size();
  if (frame_bytes * 105 > chunk.size() * 100) return with_checksum(planes.elements(), false);

  std::vector<std::byte> frame(frame_bytes);
  std::byte* out = put_frame_header(frame.data(), chunk.size());
  for (size_t plane = 0; plane < low_planes; ++plane) {
    out = put_raw_plane(out, planes, static_cast<int>(plane));
  }
  std::memcpy(out, high_blocks.data(), high_blocks.size());
  return with_checksum(std::move(frame), true);
}

void decode_chunk(std::span<const std::byte> stored, bool compressed, uint64_t xxh3,
                  int element_bytes, std::span<std::byte> chunk, ChunkLayout layout) {
  check_elements(chunk.size(), element_bytes);
  check_checksum(stored, xxh3);
  if (!compressed) {
    if (stored.size() != chunk.size()) {
      throw std::runtime_error(
          fmt::format("{} raw bytes stored, the chunk has {}", stored.size(), chunk.size()));
    }
    if (layout == ChunkLayout::kElements) {
      std::copy(stored.begin(), stored.end(), chunk.begin());
      return;
    }
    const Planes planes(stored, element_bytes, ChunkLayout::kElements);
    for (int plane = 0; plane < element_bytes; ++plane) {
      planes.copy(plane, 0, planes.bytes(), chunk.data() + plane * planes.bytes());
    }
    return;
  }

  const unsigned long long content = ZSTD_getFrameContentSize(stored.data(), stored.size());
  if (content == ZSTD_CONTENTSIZE_ERROR || content == ZSTD_CONTENTSIZE_UNKNOWN) {
    throw std::runtime_error("no zstd frame with a content size");
  }
  if (content != chunk.size()) {
    throw std::runtime_error(
        fmt::format("the zstd frame announces {} bytes, the chunk has {}", content, chunk.size()));
  }
  if (decompressor == nullptr) {
    decompressor.reset(ZSTD_createDCtx());
    if (decompressor == nullptr) throw std::bad_alloc();
  }
  const bool is_split = layout == ChunkLayout::kPlanes;
  std::byte* planes = is_split ? chunk.data() : plane_scratch.at_least(chunk.size());
  const size_t decoded = checked(
      ZSTD_decompressDCtx(decompressor.get(), planes, chunk.size(), stored.data(), stored.size()));
  if (decoded != chunk.size()) {
    throw std::runtime_error(
        fmt::format("the zstd frame holds {} bytes, the chunk has {}", decoded, chunk.size()));
  }
  if (!is_split) join_planes(planes, chunk.size() / element_bytes, element_bytes, chunk.data());
}

}  // namespace coppice
