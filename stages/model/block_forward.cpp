#include "stages/model/block_forward.h"

namespace coppice {

at::Tensor forward_half(Half half, const Architecture& architecture, const BlockWeights& weights,
                        const RotaryTable& rotary, const MicroBatch& x,
                        const InputObserver& observe) {
  return half == Half::kAttention ? attention_half(architecture, weights, rotary, x, observe)
                                  : mlp_half(architecture, weights, x, observe);
}

}  // namespace coppice
