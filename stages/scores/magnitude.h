// Magnitude: the oldest score.
#pragma once

#include <ATen/core/Tensor.h>

namespace coppice {

/// |W_ij|. weight [out, in], any float type → fp32 [out, in] on the same device.
/// Source: Han et al., arXiv:1506.02626.
at::Tensor magnitude_score(const at::Tensor& weight);

}  // namespace coppice
