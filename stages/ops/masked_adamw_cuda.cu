// One element a thread at a time: memory is passed once, neighbours are read together.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "stages/ops/masked_adamw_detail.h"

namespace coppice::detail {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxBlocks = 1 << 20;  // the grid strides over the rest

__device__ float gradient_at(const AdamWPointers& t, int64_t i) {
  return t.gradient_bf16 != nullptr ? static_cast<float>(t.gradient_bf16[i]) : t.gradient_fp32[i];
}

__global__ void __launch_bounds__(kThreads) step_elements(AdamWPointers t, AdamWCoefficients c) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < t.n; i += stride) {
    const float g = gradient_at(t, i);
    float m = c.beta1 * t.first_moment[i] + c.one_minus_beta1 * g;
    float v = c.beta2 * t.second_moment[i] + c.one_minus_beta2 * g * g;
    float w = t.master[i] - c.step_size * m / (sqrtf(v) * c.inverse_root_correction + c.epsilon);
    // +0 where pruned, whatever was there: NaN times 0 would stay NaN, −1 times 0 would be −0.
    if (t.mask != nullptr && !t.mask[i]) m = v = w = 0.0f;
    t.first_moment[i] = m;
    t.second_moment[i] = v;
    t.master[i] = w;
    if (t.compute != nullptr) t.compute[i] = c10::BFloat16(w);
  }
}

}  // namespace

void masked_adamw_cuda(const AdamWPointers& tensors, const AdamWCoefficients& c,
                       at::Device device) {
  if (tensors.n == 0) return;
  const c10::cuda::CUDAGuard guard(device);
  const int64_t blocks = std::min((tensors.n + kThreads - 1) / kThreads, kMaxBlocks);
  step_elements<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(tensors, c);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace coppice::detail
