#include "pipeline/device/product_probe.h"

#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>

#include <algorithm>
#include <chrono>
#include <vector>

namespace coppice {

double product_rate(const Device& device, at::ScalarType dtype, int64_t rows, int64_t in,
                    int64_t out) {
  using Clock = std::chrono::steady_clock;
  const auto options = at::TensorOptions().dtype(dtype).device(device.where());
  const at::Tensor x = at::ones({rows, in}, options);
  const at::Tensor w = at::ones({out, in}, options);
  const auto once = [&] {
    const auto start = Clock::now();
    at::linear(x, w).narrow(0, 0, 1).narrow(1, 0, 1).item();  // item() waits for a GPU
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  once();  // the first call chooses and packs
  std::vector<double> seconds;
  for (double total = 0; total < 0.5; total += seconds.back()) seconds.push_back(once());
  std::nth_element(seconds.begin(), seconds.begin() + long(seconds.size() / 2), seconds.end());
  return 2.0 * double(rows) * double(in) * double(out) / seconds[seconds.size() / 2];
}

}  // namespace coppice
