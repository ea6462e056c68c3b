// A checkpoint of tests/golden and what transformers computed with it.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "stages/model/architecture.h"
#include "stages/model/block_weights.h"
#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/checkpoint/safetensors.h"

namespace coppice::testing {

/// Every folder of tests/golden, by name.
std::vector<std::string> golden_folders();

class Golden {
 public:
  /// `folder` below tests/golden, e.g. "llama_fp32".
  explicit Golden(const std::string& folder);

  const Architecture& architecture() const { return architecture_; }
  at::Tensor weight(const std::string& name) const;    // of the checkpoint
  at::Tensor expected(const std::string& name) const;  // of golden.safetensors
  BlockWeights block(int block) const;

  /// What a CPU computes with for this checkpoint: its own dtype, and fp32 for float16.
  at::ScalarType compute_dtype() const;

 private:
  std::filesystem::path golden_path_;
  CheckpointReader checkpoint_;
  SafetensorsHeader golden_;
  Architecture architecture_;
};

}  // namespace coppice::testing
