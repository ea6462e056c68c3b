// The GPU's side of masked_adamw.h. One element a thread at a time: memory is passed once,
// neighbours are read together.
#pragma once

#include <cmath>
#include <cstdint>

#include "stages/ops/gpu_team.h"
#include "stages/ops/masked_adamw_detail.h"

namespace coppice::gpu {

COPPICE_KERNEL float gradient_at(const detail::AdamWPointers& t, int64_t i) {
  return t.gradient_bf16 != nullptr ? static_cast<float>(t.gradient_bf16[i]) : t.gradient_fp32[i];
}

/// Any number of teams and threads. Each sum of the formula is rounded once; the CPU's loop leaves
/// that to its compiler, so the two agree within a spacing a step, not in every bit.
template <typename Team>
COPPICE_KERNEL void adamw_step(const Team& team, const detail::AdamWPointers& t,
                               const detail::AdamWCoefficients& c) {
  const int64_t stride = team.num_teams() * team.num_threads();
  for (int64_t i = team.team() * team.num_threads() + team.thread(); i < t.n; i += stride) {
    const float g = gradient_at(t, i);
    float m = fmaf(c.beta1, t.first_moment[i], c.one_minus_beta1 * g);
    float v = fmaf(c.beta2, t.second_moment[i], c.one_minus_beta2 * g * g);
    float w = t.master[i] - c.step_size * m / fmaf(sqrtf(v), c.inverse_root_correction, c.epsilon);
    // +0 where pruned, whatever was there: NaN times 0 would stay NaN, −1 times 0 would be −0.
    if (t.mask != nullptr && !t.mask[i]) m = v = w = 0.0f;
    t.first_moment[i] = m;
    t.second_moment[i] = v;
    t.master[i] = w;
    if (t.compute != nullptr) t.compute[i] = c10::BFloat16(w);
  }
}

}  // namespace coppice::gpu
