#include "stages/span_job.h"

#include <ATen/ops/empty_like.h>

#include <algorithm>

namespace coppice {

std::string to_string(const Boundary& boundary) {
  const std::string stream = boundary.stream == Stream::kDense ? "dense" : "propagated";
  return stream + "." + std::to_string(boundary.half);
}

at::Tensor& Variant::room_for(const std::string& name, const at::Tensor& dense) {
  at::Tensor& tensor = adapted[name];
  if (tensor.defined()) return tensor;
  const auto place = places.find(name);
  tensor = place != places.end() ? place->second : at::empty_like(dense);
  return tensor;
}

void Variant::mark_trained(const std::string& name) {
  if (std::find(trained.begin(), trained.end(), name) == trained.end()) trained.push_back(name);
}

at::Tensor InputStatistics::column_norm() const {
  // The root is taken in fp64: sums of squares may pass the range of fp32, their roots do not.
  return sum_of_squares.sqrt().to(at::kFloat);
}

at::Tensor InputStatistics::variance() const {
  const double count = static_cast<double>(tokens);
  const at::Tensor mean = sum.div(count);
  return sum_of_squares.div(count).sub_(mean.square()).clamp_min_(0).to(at::kFloat);
}

}  // namespace coppice
