// A number that kernels add to and the host reads.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include "stages/ops/gpu_team.h"

namespace coppice::gpu {

/// 0 at first, on the device of `like`.
class Counter {
 public:
  explicit Counter(const at::Tensor& like)
      : sum_(at::zeros({1}, like.options().dtype(at::kLong))) {}

  Count* data() { return reinterpret_cast<Count*>(sum_.mutable_data_ptr<int64_t>()); }

  /// Waits for what was launched on the current stream.
  int64_t read() const { return sum_.item<int64_t>(); }

 private:
  at::Tensor sum_;
};

}  // namespace coppice::gpu
