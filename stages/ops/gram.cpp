#include "stages/ops/gram.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/tril.h>

#include <algorithm>
#include <stdexcept>
#include <string>

namespace coppice {
namespace {

// Columns of a strip: narrow enough to leave out most of the upper triangle, wide enough for the
// product to run at full rate.
constexpr int64_t kStrip = 256;

/// Whether the device multiplies x as it is into fp32: products of bf16 are exact there, and summed
/// there. A product of ATen on the CPU has the dtype of its factors.
bool multiplies_into_fp32(const at::Tensor& x) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16;
}

}  // namespace

void add_gram(at::Tensor& gram, const at::Tensor& x) {
  const int64_t in = x.size(1);
  if (gram.size(0) != in || gram.size(1) != in) {
    throw std::invalid_argument("gram: a matrix of " + std::to_string(gram.size(0)) + " x " +
                                std::to_string(gram.size(1)) + " for " + std::to_string(in) +
                                " columns");
  }
  const at::Tensor factor = multiplies_into_fp32(x) ? x : x.to(at::kFloat);
  for (int64_t first = 0; first < in; first += kStrip) {
    const int64_t width = std::min(kStrip, in - first), height = in - first;
    at::Tensor sums = gram.narrow(0, first, height).narrow(1, first, width);
    const at::Tensor left = factor.narrow(1, first, height).t();  // [height, tokens]
    const at::Tensor right = factor.narrow(1, first, width);      // [tokens, width]
    multiplies_into_fp32(x) ? at::addmm_out(sums, sums, left, right, at::kFloat)
                            : sums.addmm_(left, right);
  }
}

void mirror_gram(at::Tensor& gram) {
  const int64_t in = gram.size(0);
  for (int64_t first = 0; first < in; first += kStrip) {
    const int64_t width = std::min(kStrip, in - first), rest = in - first - width;
    at::Tensor corner = gram.narrow(0, first, width).narrow(1, first, width);
    corner.copy_(corner.tril() + corner.tril(-1).t());
    gram.narrow(0, first, width)
        .narrow(1, first + width, rest)
        .copy_(gram.narrow(0, first + width, rest).narrow(1, first, width).t());
  }
}

double gram_flop(int64_t in, double tokens) {
  double elements = 0;
  for (int64_t first = 0; first < in; first += kStrip) {
    elements += static_cast<double>(std::min(kStrip, in - first) * (in - first));
  }
  return 2 * tokens * elements;
}

}  // namespace coppice
