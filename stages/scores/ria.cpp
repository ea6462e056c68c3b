#include "stages/scores/ria.h"

#include <ATen/TensorOperators.h>

#include <limits>

#include "stages/scores/magnitude.h"
#include "stages/scores/wanda.h"  // require_column_norm

namespace coppice {
namespace {

/// 1 / Σ along one dimension, finite also where everything is 0.
at::Tensor reciprocal_sum(const at::Tensor& magnitudes, int64_t dimension) {
  return magnitudes.sum({dimension}, /*keepdim=*/true)
      .clamp_min_(std::numeric_limits<float>::min())
      .reciprocal_();
}

}  // namespace

at::Tensor ria_score(const at::Tensor& weight, const at::Tensor& column_norm, double alpha) {
  require_column_norm("RIA score", weight, column_norm);
  at::Tensor score = magnitude_score(weight);  // [out, in]
  const at::Tensor of_column = reciprocal_sum(score, 0), of_row = reciprocal_sum(score, 1);
  return score.mul_(of_column + of_row).mul_(column_norm.pow(alpha));
}

}  // namespace coppice
