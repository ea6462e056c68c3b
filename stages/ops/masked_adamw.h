// One optimiser step in one pass: AdamW under a mask, with the compute copy written on the way.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// State of one trained tensor. All of the same shape, contiguous, on one device.
struct AdamWState {
  at::Tensor master;         // fp32: the parameter
  at::Tensor first_moment;   // fp32
  at::Tensor second_moment;  // fp32
  at::Tensor mask;           // bool, true is kept; undefined: all are
  at::Tensor compute;  // the copy products use, rewritten each step; undefined where it is `master`
};

struct AdamWStep {
  double lr = 0;
  int64_t step = 1;  // counted from 1: bias correction
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
};

/// Updates `state` by `gradient` (fp32 or bf16, same shape). Pruned elements are exactly +0
/// afterwards, in master and compute copy. No weight decay. Source: Loshchilov & Hutter,
/// arXiv:1711.05101.
void masked_adamw(AdamWState& state, const at::Tensor& gradient, const AdamWStep& step);

}  // namespace coppice
