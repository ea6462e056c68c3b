#include "stages/bitmask.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/ones.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <stdexcept>

namespace coppice {
namespace {

constexpr int64_t kBits = 8;

/// 1, 2, 4, … 128.
at::Tensor bit_values(at::Device device) {
  const at::TensorOptions bytes = at::TensorOptions(at::kByte).device(device);
  return at::ones({kBits}, bytes).bitwise_left_shift(at::arange(kBits, bytes));
}

int64_t bytes_of(int64_t in) { return (in + kBits - 1) / kBits; }

}  // namespace

at::Tensor pack_bitmask(const at::Tensor& mask) {
  const int64_t out = mask.size(0), in = mask.size(1), bytes = bytes_of(in);
  const at::Tensor bits = at::constant_pad_nd(mask.to(at::kByte), {0, bytes * kBits - in});
  return (bits.view({out, bytes, kBits}) * bit_values(mask.device()))
      .sum(/*dim=*/-1, /*keepdim=*/false, at::kByte);  // [out, bytes]
}

at::Tensor unpack_bitmask(const at::Tensor& packed, int64_t in) {
  if (packed.scalar_type() != at::kByte || packed.dim() != 2 || packed.size(1) != bytes_of(in)) {
    throw std::invalid_argument(
        fmt::format("a bitmask of {} columns is uint8 [out, {}], found {} [{}]", in, bytes_of(in),
                    c10::toString(packed.scalar_type()), fmt::join(packed.sizes(), ", ")));
  }
  const at::Tensor bits =
      packed.unsqueeze(-1).bitwise_and(bit_values(packed.device())).ne(0);  // [out, bytes, 8]
  return bits.view({packed.size(0), packed.size(1) * kBits}).narrow(1, 0, in).contiguous();
}

}  // namespace coppice
