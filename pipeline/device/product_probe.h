// What this device does when nothing but a matrix product is asked of it: the yardstick of a run.
#pragma once

#include <cstdint>

#include "pipeline/device/device.h"

namespace coppice {

/// FLOP/s of at::linear, x [rows, in] · w [out, in]ᵀ, in `dtype`: the median of repetitions that
/// take about half a second. On the device's thread.
double product_rate(const Device& device, at::ScalarType dtype, int64_t rows, int64_t in,
                    int64_t out);

}  // namespace coppice
