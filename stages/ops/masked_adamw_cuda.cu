// Launches masked_adamw_kernel.h.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "stages/ops/masked_adamw_detail.h"
#include "stages/ops/masked_adamw_kernel.h"

namespace coppice::detail {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // the grid strides over the rest

__global__ void __launch_bounds__(kThreads) adamw_step(AdamWPointers t, AdamWCoefficients c) {
  gpu::adamw_step(gpu::Block(), t, c);
}

}  // namespace

void masked_adamw_cuda(const AdamWPointers& tensors, const AdamWCoefficients& c,
                       at::Device device) {
  if (tensors.n == 0) return;
  const c10::cuda::CUDAGuard guard(device);
  const int64_t blocks = std::min((tensors.n + kThreads - 1) / kThreads, kMaxBlocks);
  adamw_step<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(tensors, c);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace coppice::detail
