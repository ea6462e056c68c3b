#include "stages/errors.h"

#include <fmt/format.h>

namespace coppice {

NumericalError::NumericalError(const std::string& tensor, int64_t num_not_finite,
                               int64_t num_elements)
    : std::runtime_error(
          fmt::format("{}: {} of {} elements are NaN or infinite, all must be finite", tensor,
                      num_not_finite, num_elements)) {}

}  // namespace coppice
