// What each device implements of masked_adamw.h. Arguments have been checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "stages/ops/masked_adamw.h"

namespace coppice::detail {

/// One step over n contiguous elements. Pointers are null where a tensor is undefined; of the two
/// gradients exactly one is given.
struct AdamWPointers {
  int64_t n = 0;
  float* master = nullptr;
  float* first_moment = nullptr;
  float* second_moment = nullptr;
  const bool* mask = nullptr;
  c10::BFloat16* compute = nullptr;
  const float* gradient_fp32 = nullptr;
  const c10::BFloat16* gradient_bf16 = nullptr;
};

/// master −= step_size · m / (√v · inverse_root_correction + epsilon), all rounded from doubles.
struct AdamWCoefficients {
  float beta1 = 0;
  float one_minus_beta1 = 0;
  float beta2 = 0;
  float one_minus_beta2 = 0;
  float step_size = 0;                // lr / (1 − beta1^step)
  float inverse_root_correction = 0;  // 1 / √(1 − beta2^step)
  float epsilon = 0;
};

/// Throws std::invalid_argument for a step below 1.
AdamWCoefficients coefficients_of(const AdamWStep& step);

void masked_adamw_cpu(const AdamWPointers& tensors, const AdamWCoefficients& c);
void masked_adamw_cuda(const AdamWPointers& tensors, const AdamWCoefficients& c, at::Device device);

}  // namespace coppice::detail
