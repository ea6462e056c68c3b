// Opens every shard, then holds the index to what the shards say.
#include "storage/checkpoint/checkpoint_reader.h"

#include <fmt/format.h>

#include <cerrno>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "storage/checkpoint/strict_json.h"
#include "storage/errors.h"

namespace coppice {
namespace {

using nlohmann::json;

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kSingleName = "model.safetensors";

/// Throws IoError if the directories above do not let anyone look.
bool present(const std::filesystem::path& path) {
  std::error_code error;
  const bool found = std::filesystem::exists(path, error);
  if (error) throw IoError("looking for", path.string(), error.value());
  return found;
}

/// A shard's name comes from a file that may lie: it must stay in the directory. What it names may
/// be a symbolic link out of it, as download caches make them.
void check_shard_name(const std::string& index, const std::string& tensor, const json& shard) {
  if (shard.is_string()) {
    const std::filesystem::path name = shard.get<std::string>();
    const std::filesystem::path normal = name.lexically_normal();
    if (!name.empty() && name.is_relative() && *normal.begin() != ".." && normal.has_filename() &&
        normal != "." && name.string().find('\0') == std::string::npos) {
      return;
    }
  }
  throw CorruptionError(index, 0, fmt::format("tensor '{}' in a file below the directory", tensor),
                        shard.dump().substr(0, 200));
}

/// Tensor → shard file name, as the index has it.
std::map<std::string, std::string> read_index(const std::filesystem::path& path) {
  const json root = parse_strict_json(path.string(), read_file(path));
  const auto map = root.is_object() ? root.find("weight_map") : root.end();
  if (map == root.end() || !map->is_object()) {
    throw CorruptionError(path.string(), 0, "an object 'weight_map'",
                          root.is_object() ? "none" : root.type_name());
  }
  std::map<std::string, std::string> shard_of_tensor;
  for (const auto& [tensor, shard] : map->items()) {
    check_shard_name(path.string(), tensor, shard);
    shard_of_tensor[tensor] = shard.get<std::string>();
  }
  return shard_of_tensor;
}

/// Shard file name → a tensor that wants it.
std::map<std::string, std::string> wanted_shards(
    const std::map<std::string, std::string>& shard_of_tensor) {
  std::map<std::string, std::string> wanted_by;
  for (const auto& [tensor, shard] : shard_of_tensor) wanted_by.emplace(shard, tensor);
  return wanted_by;
}

[[noreturn]] void throw_nothing_to_open(const std::filesystem::path& directory) {
  if (!present(directory)) {
    throw IoError("opening a checkpoint directory", directory.string(), ENOENT);
  }
  throw IoError(fmt::format("looking for {} or {} (other formats: convert them first)", kIndexName,
                            kSingleName),
                directory.string(), ENOENT);
}

}  // namespace

CheckpointReader::CheckpointReader(std::filesystem::path directory)
    : directory_(std::move(directory)), index_path_(directory_ / kIndexName) {
  std::map<std::string, std::string> shard_of_tensor;
  std::vector<std::filesystem::path> shards;
  if (present(index_path_)) {
    shard_of_tensor = read_index(index_path_);
    for (const auto& [shard, tensor] : wanted_shards(shard_of_tensor)) {
      shards.push_back(directory_ / shard);
      if (!present(shards.back())) {
        throw IoError(fmt::format("opening the shard of tensor '{}', named by {}", tensor,
                                  index_path_.string()),
                      shards.back().string(), ENOENT);
      }
    }
  } else {
    index_path_ = directory_ / kSingleName;
    if (!present(index_path_)) throw_nothing_to_open(directory_);
    shards.push_back(index_path_);
  }
  for (const std::filesystem::path& shard : shards) add_shard(shard);
  for (const auto& [tensor, shard] : shard_of_tensor) {
    const auto found = tensors_.find(tensor);
    const std::filesystem::path promised = directory_ / shard;
    if (found == tensors_.end() || files_[found->second.file]->path() != promised) {
      throw CorruptionError(
          index_path_.string(), 0, fmt::format("tensor '{}' in {}", tensor, promised.string()),
          found == tensors_.end()
              ? "no shard with it"
              : fmt::format("it in {}", files_[found->second.file]->path().string()));
    }
  }
}

void CheckpointReader::add_shard(const std::filesystem::path& path) {
  const uint32_t file = static_cast<uint32_t>(files_.size());
  files_.push_back(std::make_unique<ReadFile>(path));
  headers_.push_back(read_safetensors_header(path));
  const std::vector<TensorInfo>& tensors = headers_.back().tensors;
  for (uint32_t i = 0; i < tensors.size(); ++i) {
    const auto [entry, is_new] = tensors_.emplace(tensors[i].name, Entry{file, i});
    if (!is_new) {
      throw CorruptionError(path.string(), tensors[i].offset, "every tensor in one shard",
                            fmt::format("'{}' also in {}", tensors[i].name,
                                        files_[entry->second.file]->path().string()));
    }
  }
}

std::vector<uint64_t> CheckpointReader::file_bytes() const {
  std::vector<uint64_t> bytes;
  for (const auto& file : files_) bytes.push_back(file->bytes());
  return bytes;
}

const CheckpointReader::Entry& CheckpointReader::entry(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) {
    throw CorruptionError(directory_.string(), 0, fmt::format("tensor '{}'", name),
                          fmt::format("{} tensors, none of that name", tensors_.size()));
  }
  return found->second;
}

const TensorInfo& CheckpointReader::tensor(const std::string& name) const {
  const Entry& at = entry(name);
  return headers_[at.file].tensors[at.index];
}

Extent CheckpointReader::extent(const std::string& name) const {
  const TensorInfo& info = tensor(name);
  return {.file = entry(name).file, .offset = info.offset, .bytes = info.bytes};
}

std::vector<std::string> CheckpointReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, at] : tensors_) names.push_back(name);
  return names;
}

uint64_t CheckpointReader::total_bytes() const {
  uint64_t bytes = 0;
  for (const SafetensorsHeader& header : headers_) {
    for (const TensorInfo& tensor : header.tensors) bytes += tensor.bytes;
  }
  return bytes;
}

}  // namespace coppice
