// Hidden states of all calibration windows at one boundary, as an HDF5 file of compressed chunks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "storage/cache/codec.h"
#include "storage/io/file.h"

namespace coppice {

/// One chunk is one window: [seqlen, hidden] elements.
struct ActivationShape {
  int64_t windows = 0;
  int64_t seqlen = 0;
  int64_t hidden = 0;
  std::string dtype;  // "BF16", "F16" or "F32"

  int element_bytes() const;
  uint64_t chunk_bytes() const;
  bool operator==(const ActivationShape&) const = default;
};

/// Writes `<path>.tmp`; the file exists only once finished. Chunks may come in any order, each
/// once. All calls from one thread at a time, and never beside another HDF5 call: the caller owns
/// the serial place. Memory: 32 bytes a window. Throws IoError; std::invalid_argument for an
/// impossible shape or a chunk that is none of this shape; std::logic_error for a window written
/// twice.
class ActivationCacheWriter {
 public:
  ActivationCacheWriter(std::filesystem::path path, const ActivationShape& shape);
  ~ActivationCacheWriter();  // removes an unfinished file
  /// Takes room on the disk for one more chunk and for all that finish() adds, so that neither
  /// finds it full. Throws IoError (ENOSPC): then nothing is held, call it again before write().
  void reserve(uint64_t chunk_bytes);
  void write(int64_t window, const EncodedChunk& chunk);
  /// Writes the index, closes, syncs, renames. The record's hash is over description and index,
  /// not over the file. Throws std::logic_error if a window is missing.
  FileRecord finish();
  uint64_t stored_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Where a chunk lies, so that it is read by the I/O engine and not through HDF5.
struct ChunkLocation {
  uint64_t offset = 0;
  uint64_t stored_bytes = 0;
  bool compressed = false;
  uint64_t xxh3 = 0;
};

/// Opens a finished file, reads its index and closes HDF5 again; chunks are then read from
/// `file()`. The constructor calls HDF5 and takes no lock of its own: the caller holds the serial
/// HDF5 place, and may construct readers while it does. After construction: any thread. Throws
/// IoError, CorruptionError (no HDF5, wrong magic, version, shape, index checksum, a chunk outside
/// the file).
class ActivationCacheReader {
 public:
  explicit ActivationCacheReader(std::filesystem::path path);
  const ActivationShape& shape() const { return shape_; }
  const ReadFile& file() const { return *file_; }
  /// What finish() returned for this content.
  const FileRecord& record() const { return record_; }
  const ChunkLocation& chunk(int64_t window) const { return chunks_.at(window); }
  /// Reads all chunks and checks each. Throws IoError, CorruptionError.
  void verify() const;
  /// Checks and decodes the stored bytes of a window. Throws CorruptionError with file and offset.
  void decode(int64_t window, std::span<const std::byte> stored, std::span<std::byte> elements,
              ChunkLayout layout = ChunkLayout::kElements) const;

 private:
  std::filesystem::path path_;
  ActivationShape shape_;
  std::unique_ptr<ReadFile> file_;
  FileRecord record_;
  std::vector<ChunkLocation> chunks_;
};

}  // namespace coppice
