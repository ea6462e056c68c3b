// The check for NaN and infinity.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace coppice {

/// Throws NumericalError with `name` and the counts if an element is NaN or infinite. One pass over
/// the tensor where all is well.
void require_finite(const std::string& name, const at::Tensor& tensor);

}  // namespace coppice
