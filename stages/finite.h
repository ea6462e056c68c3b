// What one pass over a tensor tells: NaN and infinity, zeros.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace coppice {

/// Throws NumericalError with `name` and the counts if an element is NaN or infinite. One pass over
/// the tensor where all is well.
void require_finite(const std::string& name, const at::Tensor& tensor);

/// Whether tensors are finite in what a boundary between blocks of such a dtype will hold ("F16"
/// ends at 65504). Asked of many at once: whoever asks a GPU waits for all it was given to do. On
/// the device of the tensors, one pass over each; one thread.
class StorableCheck {
 public:
  /// name, dtype  of the boundary that they are windows of
  StorableCheck(std::string name, const std::string& dtype);
  void add(const at::Tensor& tensor);
  /// Throws NumericalError if an element of those added since the last call is not storable.
  void require();

 private:
  std::string name_;
  bool is_float16_;
  at::Tensor num_not_finite_;  // int64, a number
  int64_t num_elements_ = 0;
};

/// Zeros among the elements, 0 to 1; 0 of an empty tensor.
double share_of_zeros(const at::Tensor& tensor);

}  // namespace coppice
