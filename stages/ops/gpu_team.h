// What a kernel's source sees of the threads that run it. Kernels are templates over a team
// (*_kernel.h): nvcc compiles them for a block or a warp, and tests compile the same lines for the
// host, where tests/support/host_team.h plays the threads. So the arithmetic and the barriers of a
// kernel are tested where there is no GPU.
//
// A team is an object of each of its threads:
//   thread(), num_threads()   which thread this is, and of how many
//   team(), num_teams()       which team of the launch this is, and of how many
//   sync()                    returns when every thread has called it; what was written is seen
//   sync_count(flag)          the same, and returns for how many threads `flag` was true
//   add(&sum, value)          adds as one step, whichever threads add at the same time
// Shared memory is a struct that the launch gives each team: kernels name it `shared`. It holds
// garbage at first, and what the team's last piece of work left there.
//
// Kernels write fmaf() where a product and a sum are to be rounded once: nothing else is contracted
// (stages/CMakeLists.txt), and division and square root are those of IEEE 754. So a kernel computes
// the same bits on every GPU and on the host.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define COPPICE_KERNEL __device__ inline
#else
#define COPPICE_KERNEL inline
#endif

namespace coppice::gpu {

/// 64 bits as atomicAdd takes them.
using Count = unsigned long long;

COPPICE_KERNEL uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);  // std::bit_cast is C++20: .cu files are not
  return bits;
}

COPPICE_KERNEL bool is_finite(float value) { return (bits_of(value) & 0x7f800000u) != 0x7f800000u; }

#ifdef __CUDACC__

/// All threads of a block.
class Block {
 public:
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int num_threads() const { return static_cast<int>(blockDim.x); }
  __device__ int64_t team() const { return blockIdx.x; }
  __device__ int64_t num_teams() const { return gridDim.x; }
  __device__ void sync() const { __syncthreads(); }
  __device__ int sync_count(bool flag) const { return __syncthreads_count(flag); }
  template <typename T>
  __device__ void add(T* sum, T value) const {
    atomicAdd(sum, value);
  }
};

/// One of the warps of a block: the launch has `kWarpThreads` threads for each. Its threads wait
/// for each other only.
class Warp {
 public:
  static constexpr int kWarpThreads = 32;

  __device__ int thread() const { return static_cast<int>(threadIdx.x) % kWarpThreads; }
  __device__ int num_threads() const { return kWarpThreads; }
  __device__ int64_t team() const { return int64_t{blockIdx.x} * warps_a_block() + warp(); }
  __device__ int64_t num_teams() const { return int64_t{gridDim.x} * warps_a_block(); }
  __device__ void sync() const { __syncwarp(); }
  template <typename T>
  __device__ void add(T* sum, T value) const {
    atomicAdd(sum, value);
  }

  __device__ int warp() const { return static_cast<int>(threadIdx.x) / kWarpThreads; }

 private:
  __device__ int warps_a_block() const { return static_cast<int>(blockDim.x) / kWarpThreads; }
};

#endif

}  // namespace coppice::gpu
