// One block per row. The cut is found digit by digit from the top of a key that ascends with the
// score; ties are pruned from the lowest column. Only integers are counted, so the bits are those
// of the CPU.
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "stages/ops/mask_select_detail.h"

namespace coppice::detail {
namespace {

constexpr int kThreads = 1024;
constexpr int kDigitBits = 8;
constexpr int kDigitValues = 1 << kDigitBits;
constexpr int64_t kMaxBlocks = 1 << 20;  // the grid strides over the rest

using Count = unsigned long long;  // what atomicAdd takes for 64 bits

__device__ bool is_finite(float score) {
  return (__float_as_uint(score) & 0x7f800000u) != 0x7f800000u;
}

/// Ascends with the score; −0 and +0 have one key (−0 + 0 is +0).
__device__ unsigned key_of(float score) {
  const unsigned bits = __float_as_uint(score + 0.0f);
  return bits ^ ((bits & 0x80000000u) != 0 ? 0xffffffffu : 0x80000000u);
}

/// The key of the largest score that is pruned, and how many of those equal to it are.
struct Cut {
  unsigned key;
  unsigned num_ties;
};

/// Called by the whole block, returns the same to each thread. `count` ≥ 1 scores are to be pruned.
__device__ Cut cut_of(const float* scores, int64_t n, unsigned count, Count* num_not_finite) {
  __shared__ unsigned histogram[kDigitValues];
  __shared__ Cut cut;
  unsigned not_finite = 0;
  if (threadIdx.x == 0) cut = {0, count};
  for (int shift = 32 - kDigitBits; shift >= 0; shift -= kDigitBits) {
    for (int i = threadIdx.x; i < kDigitValues; i += kThreads) histogram[i] = 0;
    __syncthreads();                       // `histogram` is empty, `cut` is written
    const int above = shift + kDigitBits;  // shifting by 32 is undefined, hence 64 bits
    const uint64_t wanted = uint64_t{cut.key} >> above;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const uint64_t key = key_of(scores[i]);
      if (key >> above == wanted) atomicAdd(&histogram[(key >> shift) & (kDigitValues - 1)], 1u);
      if (shift == 0) not_finite += !is_finite(scores[i]);  // once, in the last pass
    }
    __syncthreads();  // `histogram` is complete
    if (threadIdx.x == 0) {
      unsigned value = 0;
      while (histogram[value] < cut.num_ties) cut.num_ties -= histogram[value++];
      cut.key |= value << shift;
    }
    __syncthreads();  // `cut` is written; `histogram` may be emptied
  }
  if (not_finite != 0) atomicAdd(num_not_finite, static_cast<Count>(not_finite));
  const Cut found = cut;
  __syncthreads();  // everybody has read `cut`: the next row may overwrite it
  return found;
}

/// Whether this thread's tie is among the first `num_wanted` of its chunk. Called by the whole
/// block.
__device__ bool is_early_tie(bool is_tie, unsigned num_wanted) {
  __shared__ bool ties[kThreads];
  ties[threadIdx.x] = is_tie;
  __syncthreads();
  unsigned before = 0;
  if (is_tie) {
    for (unsigned i = 0; i < threadIdx.x; ++i) before += ties[i];
  }
  __syncthreads();
  return is_tie && before < num_wanted;
}

/// Walks the row in chunks of one score a thread, so that ties are met in the order of columns.
/// At most one chunk holds both pruned and kept ties: only there their order is looked at.
__device__ void write_mask(const float* scores, int64_t n, Cut cut, bool* keep) {
  unsigned ties_before = 0;
  for (int64_t first = 0; first < n; first += kThreads) {
    const int64_t i = first + threadIdx.x;
    const unsigned key = i < n ? key_of(scores[i]) : 0xffffffffu;
    const bool is_tie = i < n && key == cut.key;
    const unsigned ties = __syncthreads_count(is_tie);
    const unsigned num_wanted = cut.num_ties > ties_before ? cut.num_ties - ties_before : 0;
    bool prunes_tie = is_tie && num_wanted > 0;
    if (num_wanted > 0 && num_wanted < ties) prunes_tie = is_early_tie(is_tie, num_wanted);
    if (i < n) keep[i] = key > cut.key || (is_tie && !prunes_tie);
    ties_before += ties;
  }
}

__global__ void __launch_bounds__(kThreads)
    mask_rows(const float* scores, int64_t rows, int64_t columns, unsigned count, bool* keep,
              Count* num_not_finite) {
  for (int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    const float* row_scores = scores + row * columns;
    const Cut cut = cut_of(row_scores, columns, count, num_not_finite);
    write_mask(row_scores, columns, cut, keep + row * columns);
  }
}

/// One score a thread. A score is kept if at least `count` of its group go before it.
__global__ void mask_groups(const float* scores, int64_t n, int count, int group_size, bool* keep,
                            Count* num_not_finite) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += stride) {
    const int64_t first = i - i % group_size;
    const float score = scores[i];
    int rank = 0;
    for (int64_t j = first; j < i; ++j) rank += scores[j] <= score;
    for (int64_t j = i + 1; j < first + group_size; ++j) rank += scores[j] < score;
    keep[i] = rank >= count;
    if (!is_finite(score)) atomicAdd(num_not_finite, Count{1});
  }
}

/// Where kernels count what is not finite; reading it waits for them.
at::Tensor make_counter(const at::Tensor& scores) {
  return at::zeros({1}, scores.options().dtype(at::kLong));
}

Count* counter_pointer(at::Tensor& counter) {
  return reinterpret_cast<Count*>(counter.mutable_data_ptr<int64_t>());
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
  at::Tensor counter = make_counter(scores);
  const int64_t blocks = std::min(rows, kMaxBlocks);
  mask_rows<<<blocks, kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      scores.const_data_ptr<float>(), rows, columns, static_cast<unsigned>(count),
      keep.mutable_data_ptr<bool>(), counter_pointer(counter));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return counter.item<int64_t>();
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
  at::Tensor counter = make_counter(scores);
  constexpr int kGroupThreads = 256;
  const int64_t blocks = std::min((n + kGroupThreads - 1) / kGroupThreads, kMaxBlocks);
  mask_groups<<<blocks, kGroupThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      scores.const_data_ptr<float>(), n, count, group_size, keep.mutable_data_ptr<bool>(),
      counter_pointer(counter));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return counter.item<int64_t>();
}

}  // namespace coppice::detail
