#include "stages/scores/wanda.h"

#include <fmt/ranges.h>

#include <stdexcept>

#include "stages/scores/magnitude.h"  // the first factor

namespace coppice {

void require_column_norm(const char* score, const at::Tensor& weight,
                         const at::Tensor& column_norm) {
  if (weight.dim() != 2 || column_norm.dim() != 1 || weight.size(1) != column_norm.size(0)) {
    throw std::invalid_argument(
        fmt::format("{}: expected weight [out, in] and column_norm [in], found [{}] and [{}]",
                    score, fmt::join(weight.sizes(), ", "), fmt::join(column_norm.sizes(), ", ")));
  }
  if (column_norm.scalar_type() != at::kFloat) {
    throw std::invalid_argument(fmt::format("{}: expected column_norm in Float, found {}", score,
                                            c10::toString(column_norm.scalar_type())));
  }
}

at::Tensor wanda_score(const at::Tensor& weight, const at::Tensor& column_norm) {
  require_column_norm("Wanda score", weight, column_norm);
  return magnitude_score(weight).mul_(
      column_norm);  // [out, in] ∘ [in], in place: the score is fresh
}

}  // namespace coppice
