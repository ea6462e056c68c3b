// Masks as they are stored: eight weights a byte.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// mask [out, in] bool → [out, ⌈in / 8⌉] uint8 on the same device: bit i of byte j is the weight in
/// column 8 j + i, 1 is kept; bits beyond the last column are 0. The layout of numpy's
/// packbits(axis=-1, bitorder="little").
at::Tensor pack_bitmask(const at::Tensor& mask);

/// The other way. Throws std::invalid_argument unless `packed` is uint8 [out, ⌈in / 8⌉].
at::Tensor unpack_bitmask(const at::Tensor& packed, int64_t in);

}  // namespace coppice
