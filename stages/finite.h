// What one pass over a tensor tells: NaN and infinity, zeros.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace coppice {

/// Throws NumericalError with `name` and the counts if an element is NaN or infinite. One pass over
/// the tensor where all is well.
void require_finite(const std::string& name, const at::Tensor& tensor);

/// The same, also of what a boundary between blocks of such a dtype ("F16") will hold: float16 ends
/// at 65504.
void require_storable(const std::string& name, const at::Tensor& tensor, const std::string& dtype);

/// Zeros among the elements, 0 to 1; 0 of an empty tensor.
double share_of_zeros(const at::Tensor& tensor);

}  // namespace coppice
