// What a stage costs: plan, bench and report all use this one function of each stage.
#pragma once

#include <algorithm>
#include <cstdint>

namespace coppice {

/// Work and traffic of a window over the whole calibration set, and the memory it takes at once.
struct Cost {
  double product_flop = 0;      // of matrix products
  double attention_flop = 0;    // of attention, forward and backward
  double bytes_touched = 0;     // of memory by everything else: norms, activations, the optimiser
  double weights_selected = 0;  // scores that a mask is chosen from
  double bytes_moved = 0;       // of hidden states through the boundaries, decoded
  /// Peak on the device, beside the weights in their slot, adapted tensors in the output, and what
  /// the boundaries hold.
  double bytes_held = 0;
  /// Statistics that stay until the last stage that reads them is done.
  double bytes_kept = 0;

  double flop() const { return product_flop + attention_flop; }

  /// One after the other: work and traffic add up, memory is that of the larger.
  Cost& operator+=(const Cost& other) {
    product_flop += other.product_flop;
    attention_flop += other.attention_flop;
    bytes_touched += other.bytes_touched;
    weights_selected += other.weights_selected;
    bytes_moved += other.bytes_moved;
    bytes_held = std::max(bytes_held, other.bytes_held);
    bytes_kept += other.bytes_kept;
    return *this;
  }
};

}  // namespace coppice
