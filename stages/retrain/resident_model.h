// A whole model in memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "stages/model/architecture.h"

namespace coppice {

using NamedTensors = std::map<std::string, at::Tensor>;

/// A model on one device, as it is stored.
struct ResidentModel {
  Architecture architecture;
  NamedTensors tensors;  // of all blocks and outside of them
  at::ScalarType compute = at::kFloat;
};

}  // namespace coppice
