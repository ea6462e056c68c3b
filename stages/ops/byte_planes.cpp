// A transposed copy of bytes, which ATen has for every device: beside the copy over the bus it is
// nothing, so no kernel of our own.
#include "stages/ops/byte_planes.h"

#include <ATen/ops/empty.h>
#include <c10/util/accumulate.h>

#include <stdexcept>
#include <string>

namespace coppice {
namespace {

/// [elements, element size]
at::Tensor bytes_of(const at::Tensor& contiguous) {
  return contiguous.view({-1, 1}).view(at::kByte);
}

}  // namespace

at::Tensor split_planes(const at::Tensor& elements, int64_t length) {
  const int64_t count = elements.numel();
  if (count > length) {
    throw std::invalid_argument("split_planes: " + std::to_string(count) + " elements for planes " +
                                "of " + std::to_string(length));
  }
  at::Tensor planes = at::empty({elements.element_size(), length},
                                at::TensorOptions(at::kByte).device(elements.device()));
  if (count > 0) planes.narrow(1, 0, count).copy_(bytes_of(elements.contiguous()).t());
  planes.narrow(1, count, length - count).zero_();
  return planes;
}

at::Tensor join_planes(const at::Tensor& planes, at::IntArrayRef shape, at::ScalarType dtype) {
  const int64_t count = c10::multiply_integers(shape);
  if (planes.size(0) != int64_t(c10::elementSize(dtype)) || planes.size(1) < count) {
    throw std::invalid_argument("join_planes: " + std::to_string(count) + " elements of " +
                                std::to_string(c10::elementSize(dtype)) + " bytes from " +
                                std::to_string(planes.size(0)) + " planes of " +
                                std::to_string(planes.size(1)));
  }
  at::Tensor elements = at::empty(shape, at::TensorOptions(dtype).device(planes.device()));
  if (count > 0) bytes_of(elements).copy_(planes.narrow(1, 0, count).t());
  return elements;
}

}  // namespace coppice
