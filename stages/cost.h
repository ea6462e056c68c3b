// What a stage costs: plan, bench and report all use this one function of each stage.
#pragma once

#include <cstdint>

namespace coppice {

struct Cost {
  double flop = 0;         // of matrix products and attention
  double bytes_moved = 0;  // activations read and written through the cache
  double bytes_held = 0;   // peak of weights, masters, moments, masks and one micro-batch

  Cost& operator+=(const Cost& other) {
    flop += other.flop;
    bytes_moved += other.bytes_moved;
    bytes_held = bytes_held > other.bytes_held ? bytes_held : other.bytes_held;
    return *this;
  }
};

}  // namespace coppice
