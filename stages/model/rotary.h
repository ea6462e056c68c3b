// Rotary position embedding: tables of cosines and sines, and their application.
#pragma once

#include <ATen/core/Tensor.h>

#include "stages/model/architecture.h"

namespace coppice {

struct RotaryTable {
  at::Tensor cos;  // [positions, head_dim], rounded to the compute dtype as transformers does
  at::Tensor sin;
};

/// Frequencies in fp32; kLlama3 rescales long wavelengths.
/// Source: Su et al., arXiv:2104.09864; llama3 scaling as in transformers' modeling_rope_utils.
RotaryTable make_rotary_table(const Rope& rope, int64_t head_dim, int64_t positions,
                              at::ScalarType dtype, at::Device device);

/// x [batch, heads, length, head_dim] → the same, rotated by halves (x·cos + rotate_half(x)·sin).
at::Tensor rotate(const at::Tensor& x, const RotaryTable& table);

}  // namespace coppice
