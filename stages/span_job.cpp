#include "stages/span_job.h"

namespace coppice {

std::string to_string(const Boundary& boundary) {
  const std::string stream = boundary.stream == Stream::kDense ? "dense" : "propagated";
  return stream + "." + std::to_string(boundary.half);
}

at::Tensor InputStatistics::column_norm() const {
  // The root is taken in fp64: sums of squares may pass the range of fp32, their roots do not.
  return sum_of_squares.sqrt().to(at::kFloat);
}

}  // namespace coppice
