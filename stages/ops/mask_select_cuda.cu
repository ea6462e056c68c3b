// Launches mask_select_kernel.h: a row is a block's, a matrix many blocks', a score of a group a
// thread's.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
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
constexpr int64_t kMatrixBlocks = 512;  // enough for every GPU; each reads what all have counted
constexpr int64_t kMatrixScores = 8 * gpu::kMaskThreads;  // that a block is worth its launch for
constexpr int64_t kMaxBlocks = 1 << 20;                   // the grid strides over the rest

__global__ void __launch_bounds__(gpu::kMaskThreads) mask_rows(gpu::MaskRows task) {
  __shared__ gpu::MaskShared shared;
  gpu::mask_rows(gpu::Block(), shared, task);
}

__global__ void __launch_bounds__(gpu::kMaskThreads) count_digit(gpu::MaskMatrix task, int digit) {
  __shared__ gpu::MaskShared shared;
  gpu::count_digit_of_matrix(gpu::Block(), shared, task, digit);
}

__global__ void __launch_bounds__(gpu::kMaskThreads) count_ties(gpu::MaskMatrix task) {
  __shared__ gpu::MaskShared shared;
  gpu::count_ties_of_matrix(gpu::Block(), shared, task);
}

__global__ void __launch_bounds__(gpu::kMaskThreads) mask_matrix(gpu::MaskMatrix task) {
  __shared__ gpu::MaskShared shared;
  gpu::mask_matrix(gpu::Block(), shared, task);
}

__global__ void __launch_bounds__(kGroupThreads) mask_groups(gpu::MaskGroups task) {
  gpu::mask_groups(gpu::Block(), task);
}

void require_countable(int64_t num_scores) {
  if (num_scores <= std::numeric_limits<unsigned>::max()) return;
  throw std::invalid_argument("mask_select: " + std::to_string(num_scores) +
                              " scores are compared at once, the GPU kernel counts up to 2^32 - 1");
}

}  // namespace

int64_t mask_rows_cuda(const at::Tensor& scores, int64_t count, at::Tensor& keep) {
  const int64_t rows = scores.size(0), columns = scores.size(1);
  if (rows == 0 || columns == 0) return 0;
  require_countable(columns);
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

int64_t mask_matrix_cuda(const at::Tensor& scores, int64_t count, at::Tensor& keep) {
  const int64_t n = scores.numel();
  if (n == 0) return 0;
  require_countable(n);
  const c10::cuda::CUDAGuard guard(scores.device());
  const int64_t blocks = std::min((n + kMatrixScores - 1) / kMatrixScores, kMatrixBlocks);
  constexpr int64_t kHistograms = gpu::kDigits * gpu::kDigitValues;
  gpu::Counter counter(scores);
  const at::Tensor counts = at::zeros({kHistograms + blocks}, scores.options().dtype(at::kInt));
  auto* histograms = reinterpret_cast<unsigned*>(counts.mutable_data_ptr<int>());
  const gpu::MaskMatrix task{scores.const_data_ptr<float>(),
                             n,
                             static_cast<unsigned>(count),
                             keep.mutable_data_ptr<bool>(),
                             counter.data(),
                             histograms,
                             histograms + kHistograms};
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  for (int digit = 0; digit < gpu::kDigits; ++digit) {
    count_digit<<<blocks, gpu::kMaskThreads, 0, stream>>>(task, digit);
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  count_ties<<<blocks, gpu::kMaskThreads, 0, stream>>>(task);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  mask_matrix<<<blocks, gpu::kMaskThreads, 0, stream>>>(task);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return counter.read();
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
