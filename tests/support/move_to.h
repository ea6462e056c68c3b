// A tiny span whose tensors lie on another device.
#pragma once

#include "tests/support/tiny_llama.h"

namespace coppice::testing {

inline void move(at::Tensor& tensor, at::Device device) {
  if (tensor.defined()) tensor = tensor.to(device);
}

inline void move(TinySpan& span, at::Device device) {
  for (BlockWeights& block : span.job.dense) {
    for (auto& [role, linear] : block.linears) {
      move(linear.weight, device);
      move(linear.bias, device);
    }
    for (auto& [role, norm] : block.norms) {
      move(norm.gain, device);
      move(norm.bias, device);
    }
    move(block.router, device);
  }
  move(span.rotary.cos, device);
  move(span.rotary.sin, device);
  for (auto* stream : {&span.boundaries.held, &span.boundaries.propagated}) {
    for (auto& [half, windows] : *stream) {
      for (at::Tensor& window : windows) move(window, device);
    }
  }
  for (Variant& variant : span.job.variants) {
    for (auto* tensors : {&variant.masks, &variant.adapted}) {
      for (auto& [name, tensor] : *tensors) move(tensor, device);
    }
  }
}

}  // namespace coppice::testing
