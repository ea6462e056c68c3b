// What can go wrong with numbers.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace coppice {

/// Values that must be finite are not: the message names the tensor and how many of its elements.
class NumericalError : public std::runtime_error {
 public:
  NumericalError(const std::string& tensor, int64_t num_not_finite, int64_t num_elements);
};

}  // namespace coppice
