// A checkpoint directory seen as one table of tensors, wherever the shards put them.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "storage/checkpoint/safetensors.h"
#include "storage/io/extent.h"
#include "storage/io/file.h"

namespace coppice {

/// Headers only; no weight is read here. Immutable after construction: any thread.
class CheckpointReader {
 public:
  /// Opens `model.safetensors.index.json` and its shards, or a single `model.safetensors`.
  /// Throws IoError for an absent directory, index or shard (an index naming an absent file says
  /// which file, and which tensor wanted it), CorruptionError for a shard or index that contradicts
  /// itself, a tensor in the index but not in its shard, a tensor twice. Tensors of a shard that
  /// the index does not list are taken along, so that nothing is lost.
  explicit CheckpointReader(std::filesystem::path directory);

  const std::filesystem::path& directory() const { return directory_; }
  /// Path of the index, or of the only shard: what identifies the checkpoint.
  const std::filesystem::path& index_path() const { return index_path_; }
  const std::vector<std::unique_ptr<ReadFile>>& files() const { return files_; }
  std::vector<uint64_t> file_bytes() const;
  const std::vector<SafetensorsHeader>& headers() const { return headers_; }  // one per file

  bool has(const std::string& name) const { return tensors_.count(name) != 0; }
  /// Throws CorruptionError naming the directory if the tensor is absent.
  const TensorInfo& tensor(const std::string& name) const;
  Extent extent(const std::string& name) const;
  std::vector<std::string> names() const;  // sorted
  uint64_t total_bytes() const;            // of all tensors

 private:
  struct Entry {
    uint32_t file;
    uint32_t index;  // into headers_[file].tensors
  };
  void add_shard(const std::filesystem::path& path);
  const Entry& entry(const std::string& name) const;

  std::filesystem::path directory_;
  std::filesystem::path index_path_;
  std::vector<std::unique_ptr<ReadFile>> files_;
  std::vector<SafetensorsHeader> headers_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace coppice
