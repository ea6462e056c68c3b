// The reference. Each thread takes stretches small enough for the first-level cache and runs plain
// loops over them, so memory is passed once and every loop vectorises.
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "stages/ops/cpu_loops.h"  // bf16, instruction sets
#include "stages/ops/masked_adamw_detail.h"

namespace coppice::detail {
namespace {

constexpr int64_t kStretch = 512;  // 512 · 23 bytes of state fit the first-level cache twice
constexpr int64_t kGrain = 64 * kStretch;

// The square root is vectorised under -fno-math-errno only, which this library is compiled with.
COPPICE_CLONES void adamw_update_loop(float* __restrict master, float* __restrict first_moment,
                                      float* __restrict second_moment,
                                      const float* __restrict gradient, int64_t n,
                                      const AdamWCoefficients& coefficients) {
  const AdamWCoefficients c = coefficients;  // a copy cannot alias what is written
  for (int64_t i = 0; i < n; ++i) {
    const float g = gradient[i];
    const float m = c.beta1 * first_moment[i] + c.one_minus_beta1 * g;
    const float v = c.beta2 * second_moment[i] + c.one_minus_beta2 * g * g;
    first_moment[i] = m;
    second_moment[i] = v;
    master[i] -= c.step_size * m / (std::sqrt(v) * c.inverse_root_correction + c.epsilon);
  }
}

/// +0 where pruned, whatever was there: NaN times 0 would stay NaN, −1 times 0 would be −0. The
/// mask is seen as bytes because loops over bool are not vectorised.
COPPICE_CLONES void adamw_mask_loop(float* __restrict values, const uint8_t* __restrict mask,
                                    int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = values[i];
    values[i] = mask[i] != 0 ? value : 0.0f;
  }
}

COPPICE_CLONES void adamw_widen_loop(const cpu::Bf16* __restrict from, float* __restrict to,
                                     int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = cpu::load(from[i]);
}

COPPICE_CLONES void adamw_round_loop(const float* __restrict from, cpu::Bf16* __restrict to,
                                     int64_t n) {
  for (int64_t i = 0; i < n; ++i) cpu::store(to[i], from[i]);
}

void step_stretch(const AdamWPointers& t, const AdamWCoefficients& c, int64_t first, int64_t n) {
  float widened[kStretch];
  const float* gradient = widened;
  if (t.gradient_bf16 != nullptr) {
    adamw_widen_loop(reinterpret_cast<const cpu::Bf16*>(t.gradient_bf16) + first, widened, n);
  } else {
    gradient = t.gradient_fp32 + first;
  }
  float* const states[] = {t.master + first, t.first_moment + first, t.second_moment + first};
  adamw_update_loop(states[0], states[1], states[2], gradient, n, c);
  if (t.mask != nullptr) {
    const auto* mask = reinterpret_cast<const uint8_t*>(t.mask) + first;
    for (float* state : states) adamw_mask_loop(state, mask, n);
  }
  if (t.compute != nullptr) {
    adamw_round_loop(states[0], reinterpret_cast<cpu::Bf16*>(t.compute) + first, n);
  }
}

}  // namespace

void masked_adamw_cpu(const AdamWPointers& tensors, const AdamWCoefficients& c) {
  at::parallel_for(0, tensors.n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kStretch) {
      step_stretch(tensors, c, first, std::min(kStretch, end - first));
    }
  });
}

}  // namespace coppice::detail
