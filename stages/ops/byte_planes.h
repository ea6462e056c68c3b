// Elements taken apart into planes of bytes, and put together again.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// The bytes of the elements, the lowest of all first: [element size, length] uint8 on the device
/// of `elements`, zeros behind where they are fewer than `length`. Of little-endian bf16 that is
/// the mantissas' plane and the exponents', the one that compresses.
/// elements  any shape and dtype
/// Throws std::invalid_argument if they are more.
at::Tensor split_planes(const at::Tensor& elements, int64_t length);

/// Inverse: the first elements of the planes, as many as `shape` wants.
/// planes   [size of an element of `dtype`, length] uint8      returns  `shape`, dtype
/// Throws std::invalid_argument if they are fewer, or of another size.
at::Tensor join_planes(const at::Tensor& planes, at::IntArrayRef shape, at::ScalarType dtype);

}  // namespace coppice
