// Writes a checkpoint shard by shard; the directory loads the moment the index appears.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/checkpoint/safetensors.h"
#include "storage/io/file.h"

namespace coppice {

/// Bytes of one shard while it is put together in memory: header first, then tensors end to end.
/// Does not own the memory it is laid out in.
class ShardImage {
 public:
  static uint64_t bytes_needed(const std::vector<TensorSpec>& tensors);
  /// Writes the header at once. Throws std::invalid_argument if `memory` is too small.
  ShardImage(std::span<std::byte> memory, const std::vector<TensorSpec>& tensors);

  /// Where the tensor's bytes go. Throws std::out_of_range for an unknown name.
  std::span<std::byte> tensor(const std::string& name) const;
  std::span<const std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
  std::map<std::string, std::span<std::byte>> tensors_;
};

/// `model-00003-of-00031.safetensors`; `shard` counts from 0.
std::string shard_name(int shard, int num_shards);

/// Writes a complete image durably (StagedFile). Throws IoError.
FileRecord write_shard(const std::filesystem::path& path, std::span<const std::byte> image);

/// Copies tensors unchanged from a checkpoint into one new shard, through a buffer of a few MiB:
/// an embedding is never resident whole. Order as given. Throws IoError, CorruptionError.
FileRecord copy_shard(const std::filesystem::path& path, const CheckpointReader& source,
                      const std::vector<std::string>& names);

/// Writes `model.safetensors.index.json`: tensor → shard file name, and the total of tensor bytes.
FileRecord write_index(const std::filesystem::path& directory,
                       const std::map<std::string, std::string>& shard_of_tensor,
                       uint64_t total_bytes);

}  // namespace coppice
