// Weights stored as FP8 with a scale for every block, made bf16.
#pragma once

#include <ATen/core/Tensor.h>

#include "stages/model/architecture.h"

namespace coppice {

/// values  [out, in]                            float8_e4m3fn
/// scales  [⌈out / rows⌉, ⌈in / columns⌉]       float32
/// returns [out, in]                            bfloat16, a new tensor: value · scale of its block,
/// multiplied in fp32 and rounded once. All on one device. Throws std::invalid_argument for scales
/// of another shape. Source: DeepSeek-AI, arXiv:2412.19437, section 3.3, and the checkpoints of it.
at::Tensor widened_fp8(const at::Tensor& values, const at::Tensor& scales, const ScaleBlock& block);

}  // namespace coppice
