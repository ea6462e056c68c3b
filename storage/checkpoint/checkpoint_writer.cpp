// Shards from memory or from another checkpoint, and the index that makes them one.
#include "storage/checkpoint/checkpoint_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "storage/io/aligned_buffer.h"
#include "storage/io/read_progress.h"  // read_blocking

namespace coppice {
namespace {

constexpr uint64_t kCopyBytes = uint64_t{4} << 20;

/// Appends one tensor's bytes to `target` through `buffer`. Reads direct where the file is: what is
/// copied once does not belong in the page cache.
void copy_tensor(const ReadFile& file, const TensorInfo& tensor, const AlignedBuffer& buffer,
                 StagedFile& target) {
  const uint64_t end = tensor.offset + tensor.bytes;
  for (uint64_t at = tensor.offset; at < end;) {
    const uint64_t start = at - at % file.alignment();
    const uint64_t wanted_end = std::min(end, start + buffer.bytes());
    const uint64_t wanted = wanted_end - start;
    const uint64_t blocks = (wanted + file.alignment() - 1) / file.alignment();
    read_blocking({.file = &file,
                   .offset = start,
                   .into = buffer.span().first(blocks * file.alignment()),
                   .required_bytes = wanted});
    target.append(buffer.span().subspan(at - start, wanted_end - at));
    at = wanted_end;
  }
}

}  // namespace

uint64_t ShardImage::bytes_needed(const std::vector<TensorSpec>& tensors) {
  uint64_t bytes = make_safetensors_header(tensors).size();
  for (const TensorSpec& tensor : tensors) bytes += tensor.bytes();
  return bytes;
}

ShardImage::ShardImage(std::span<std::byte> memory, const std::vector<TensorSpec>& tensors) {
  const uint64_t needed = bytes_needed(tensors);
  if (memory.size() < needed) {
    throw std::invalid_argument(
        fmt::format("shard image: {} bytes needed, {} given", needed, memory.size()));
  }
  bytes_ = memory.first(needed);
  const std::string header = make_safetensors_header(tensors);
  std::memcpy(bytes_.data(), header.data(), header.size());
  uint64_t at = header.size();
  for (const TensorSpec& tensor : tensors) {
    tensors_[tensor.name] = bytes_.subspan(at, tensor.bytes());
    at += tensor.bytes();
  }
}

std::span<std::byte> ShardImage::tensor(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw std::out_of_range(fmt::format("shard image: no tensor '{}'", name));
  }
  return found->second;
}

std::string shard_name(int shard, int num_shards) {
  return fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, num_shards);
}

FileRecord write_shard(const std::filesystem::path& path, std::span<const std::byte> image) {
  StagedFile file(path, image.size());
  file.append(image);
  return file.publish();
}

FileRecord copy_shard(const std::filesystem::path& path, const CheckpointReader& source,
                      const std::vector<std::string>& names) {
  std::vector<TensorInfo> tensors;
  uint64_t data_bytes = 0;
  for (const std::string& name : names) {
    tensors.push_back(source.tensor(name));
    data_bytes += tensors.back().bytes;
  }
  const std::string header = make_copy_header(tensors);
  StagedFile target(path, header.size() + data_bytes);
  target.append(std::as_bytes(std::span(header)));
  const AlignedBuffer buffer(kCopyBytes);
  for (const TensorInfo& tensor : tensors) {
    const ReadFile& file = *source.files()[source.extent(tensor.name).file];
    copy_tensor(file, tensor, buffer, target);
  }
  return target.publish();
}

FileRecord write_index(const std::filesystem::path& directory,
                       const std::map<std::string, std::string>& shard_of_tensor,
                       uint64_t total_bytes) {
  nlohmann::json index;  // an ordinary json object sorts its keys
  index["metadata"]["total_size"] = total_bytes;
  index["weight_map"] = shard_of_tensor;
  return write_file(directory / "model.safetensors.index.json", index.dump(2) + "\n");
}

}  // namespace coppice
