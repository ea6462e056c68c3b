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
  /// Keys of config.json that become true: of biases that this model has and its checkpoint has
  /// not.
  std::vector<std::string> added_keys = {};
};

/// The dtype in which a tensor is computed with and written: FP8 weights are widened to bf16.
std::string widened_dtype(const TensorInfo& tensor);

/// Gives linears biases of zeros where the model's class has a place for them, see add_biases.
void add_biases(SourceModel& model);

/// The elements of all tensors, without the scales of FP8 weights.
uint64_t count_parameters(const SourceModel& model);

/// Reads config.json and headers, and matches them. `extra_architecture` may be empty.
/// Throws ConfigError, IoError, CorruptionError.
SourceModel open_model(const std::filesystem::path& directory,
                       const std::filesystem::path& extra_architecture);

}  // namespace coppice
