#include "stages/model/block_forward.h"

namespace coppice {

at::Tensor forward_half(int half, const Architecture& architecture, const BlockWeights& weights,
                        const RotaryTable& rotary, const MicroBatch& x,
                        const InputObserver& observe) {
  return half_of(half) == Half::kAttention
             ? attention_half(architecture, half / 2, weights, rotary, x, observe)
             : mlp_half(architecture, weights, x, observe);
}

}  // namespace coppice
