// A checkpoint of tests/golden and what transformers computed with it.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>

#include "stages/model/architecture.h"
#include "stages/model/block_weights.h"
#include "storage/checkpoint/checkpoint_reader.h"
#include "storage/checkpoint/safetensors.h"

namespace coppice::testing {

class Golden {
 public:
  /// `folder` below tests/golden, e.g. "llama_fp32".
  explicit Golden(const std::string& folder);

  const Architecture& architecture() const { return architecture_; }
  at::Tensor weight(const std::string& name) const;    // of the checkpoint
  at::Tensor expected(const std::string& name) const;  // of golden.safetensors
  BlockWeights block(int block) const;

 private:
  std::filesystem::path golden_path_;
  CheckpointReader checkpoint_;
  SafetensorsHeader golden_;
  Architecture architecture_;
};

}  // namespace coppice::testing
