// One chunk of activations to bytes and back: exponent plane entropy-coded, mantissa planes raw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace coppice {

/// What lies on disk for one chunk.
struct EncodedChunk {
  std::vector<std::byte> bytes;
  bool compressed =
      false;          // false: `bytes` are the raw elements (compression did not pay, ratio < 1.05)
  uint64_t xxh3 = 0;  // XXH3-64 of `bytes`
};

/// How the bytes of a chunk's elements lie in memory. On disk they lie the same either way.
enum class ChunkLayout {
  kElements,  // one element after the other
  kPlanes,  // byte planes, the lowest first: all elements' first bytes, then all their second ones
};

/// Writes the byte planes of little-endian elements of `element_bytes` (2 or 4), lowest plane
/// first, as one zstd frame with content size in which only the highest plane (sign and exponent)
/// is Huffman-coded: readable as the HDF5 filter chain shuffle + zstd. Pure function; any thread
/// (each keeps its own zstd context). Throws std::invalid_argument for a ragged length.
EncodedChunk encode_chunk(std::span<const std::byte> chunk, int element_bytes,
                          ChunkLayout layout = ChunkLayout::kElements);

/// Inverse. The checksum is checked before anything is decompressed. Fills `chunk` exactly.
/// Throws std::runtime_error saying what differs; the cache adds file and offset.
void decode_chunk(std::span<const std::byte> stored, bool compressed, uint64_t xxh3,
                  int element_bytes, std::span<std::byte> chunk,
                  ChunkLayout layout = ChunkLayout::kElements);

}  // namespace coppice
