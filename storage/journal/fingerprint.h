// Everything that changes the bytes of a run's output, as named hashes that can be compared.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "storage/checkpoint/checkpoint_reader.h"

namespace coppice {

/// Key → value, e.g. "model.shard.model-00001.safetensors" → "bytes=…,header=…,samples=…"; a shard
/// is named by its path below the checkpoint's directory.
using Fingerprint = std::map<std::string, std::string>;

/// Size, XXH3 of the header and of up to sixteen evenly spaced 1 MiB samples of every shard, and
/// XXH3 of config.json. Reads a few MiB per shard. Throws IoError.
Fingerprint fingerprint_checkpoint(const CheckpointReader& checkpoint);

/// The shards alone, as one value: of a directory without a config.json.
std::string fingerprint_shards(const CheckpointReader& checkpoint);

/// The keys whose values differ or that only one side has, sorted.
std::vector<std::string> differing_keys(const Fingerprint& a, const Fingerprint& b);

}  // namespace coppice
