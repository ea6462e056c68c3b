// Rotary position embedding: tables of cosines and sines, and their application.
#pragma once

#include <ATen/core/Tensor.h>

#include "stages/model/architecture.h"

namespace coppice {

/// Undefined where positions do not enter the blocks (RopeKind::kNone).
struct RotaryTable {
  at::Tensor cos;  // [positions, head_dim], rounded to the compute dtype as transformers does
  at::Tensor sin;
};

/// Frequencies in fp32, as transformers scales them: divided by the factor (kLinear); of a theta
/// that grows with sequences longer than the original ones (kDynamic: exact for sequences of
/// `positions` tokens, and for all where positions ≤ original_max_position); long wavelengths
/// divided, short ones kept, those between blended (kLlama3, kYarn).
/// Sources: Su et al., arXiv:2104.09864; YaRN: Peng et al., arXiv:2309.00071; all of them as in
/// transformers' modeling_rope_utils.
RotaryTable make_rotary_table(const Rope& rope, int64_t head_dim, int64_t positions,
                              at::ScalarType dtype, at::Device device);

/// x [batch, heads, length, head_dim] → the same, rotated by halves (x·cos + rotate_half(x)·sin).
at::Tensor rotate(const at::Tensor& x, const RotaryTable& table);

}  // namespace coppice
