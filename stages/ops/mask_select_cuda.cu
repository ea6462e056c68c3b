// Launches mask_select_kernel.h: a row is a block's, a score of a group a thread's.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "stages/ops/gpu_counter.h"
#include "stages/ops/mask_select_detail.h"
#include "stages/ops/mask_select_kernel.h"

namespace coppice::detail {
namespace {

constexpr int kGroupThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // the grid strides over the rest

__global__ void __launch_bounds__(gpu::kMaskThreads) mask_rows(gpu::MaskRows task) {
  __shared__ gpu::MaskRowsShared shared;
  gpu::mask_rows(gpu::Block(), shared, task);
}

__global__ void __launch_bounds__(kGroupThreads) mask_groups(gpu::MaskGroups task) {
  gpu::mask_groups(gpu::Block(), task);
}

int64_t select_in_rows(const at::Tensor& scores, int64_t rows, int64_t columns, int64_t count,
                       at::Tensor& keep) {
  if (rows == 0 || columns == 0) return 0;
  if (columns > std::numeric_limits<unsigned>::max()) {
    throw std::invalid_argument(
        "mask_select: " + std::to_string(columns) +
        " scores are compared at once, the GPU kernel counts up to 2^32 - 1");
  }
  const c10::cuda::CUDAGuard guard(scores.device());
  gpu::Counter counter(scores);
  const gpu::MaskRows task{
      scores.const_data_ptr<float>(), rows,          columns, static_cast<unsigned>(count),
      keep.mutable_data_ptr<bool>(),  counter.data()};
  const int64_t blocks = std::min(rows, kMaxBlocks);
  mask_rows<<<blocks, gpu::kMaskThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(task);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return counter.read();
}

}  // namespace

int64_t mask_rows_cuda(const at::Tensor& scores, int64_t count, at::Tensor& keep) {
  return select_in_rows(scores, scores.size(0), scores.size(1), count, keep);
}

int64_t mask_matrix_cuda(const at::Tensor& scores, int64_t count, at::Tensor& keep) {
  // One row as long as the matrix, so one block: slow for a GPU, but five plain passes and no
  // memory.
  return select_in_rows(scores, 1, scores.numel(), count, keep);
}

int64_t mask_groups_cuda(const at::Tensor& scores, int count, int group_size, at::Tensor& keep) {
  const int64_t n = scores.numel();
  if (n == 0) return 0;
  const c10::cuda::CUDAGuard guard(scores.device());
  gpu::Counter counter(scores);
  const gpu::MaskGroups task{scores.const_data_ptr<float>(),
                             n,
                             count,
                             group_size,
                             keep.mutable_data_ptr<bool>(),
                             counter.data()};
  const int64_t blocks = std::min((n + kGroupThreads - 1) / kGroupThreads, kMaxBlocks);
  mask_groups<<<blocks, kGroupThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(task);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return counter.read();
}

}  // namespace coppice::detail
