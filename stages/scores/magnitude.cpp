#include "stages/scores/magnitude.h"

namespace coppice {

at::Tensor magnitude_score(const at::Tensor& weight) {
  return weight.to(weight.options().dtype(at::kFloat), /*non_blocking=*/false, /*copy=*/true)
      .abs_();
}

}  // namespace coppice
