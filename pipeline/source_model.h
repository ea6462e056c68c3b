// The checkpoint a command works on: its tensors and what they mean.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "stages/model/architecture.h"
#include "storage/checkpoint/checkpoint_reader.h"

namespace coppice {

struct SourceModel {
  CheckpointReader checkpoint;
  Architecture architecture;
  std::vector<std::string> unknown_tensors;  // copied through
};

/// Reads config.json and headers, and matches them. `extra_architecture` may be empty.
/// Throws ConfigError, IoError, CorruptionError.
SourceModel open_model(const std::filesystem::path& directory,
                       const std::filesystem::path& extra_architecture);

}  // namespace coppice
