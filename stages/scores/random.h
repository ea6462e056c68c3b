// Random: what any other score has to beat.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// Uniform in [0, 1), drawn on the CPU: the same for every device and number of threads.
/// weight [out, in], for its shape and device → fp32 [out, in].
at::Tensor random_score(const at::Tensor& weight, uint64_t seed);

}  // namespace coppice
