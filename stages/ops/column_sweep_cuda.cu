// Launches column_sweep_kernel.h: a row is a warp's. The factor is read through the cache that all
// rows of a multiprocessor share.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "stages/ops/column_sweep_detail.h"
#include "stages/ops/column_sweep_kernel.h"
#include "stages/ops/gpu_counter.h"

namespace coppice::detail {
namespace {

constexpr int kWarps = 4;                // rows of a block: 22 KiB of shared memory
constexpr int64_t kMaxBlocks = 1 << 20;  // the grid strides over the rest

__global__ void __launch_bounds__(kWarps* gpu::Warp::kWarpThreads)
    sweep_rows(Sweep sweep, gpu::Count* num_not_finite) {
  __shared__ gpu::SweptRow shared[kWarps];
  const gpu::Warp warp;
  gpu::sweep_rows(warp, shared[warp.warp()], sweep, num_not_finite);
}

}  // namespace

int64_t sweep_cuda(const Sweep& sweep, const at::Tensor& weight) {
  if (sweep.rows == 0) return 0;
  const c10::cuda::CUDAGuard guard(weight.device());
  gpu::Counter counter(weight);
  const int64_t blocks = std::min((sweep.rows + kWarps - 1) / kWarps, kMaxBlocks);
  sweep_rows<<<blocks, kWarps * gpu::Warp::kWarpThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      sweep, counter.data());
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  // Scores that were given have been looked at by who gave them.
  return sweep.chosen == nullptr ? 0 : counter.read();
}

}  // namespace coppice::detail
