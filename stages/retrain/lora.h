// A low-rank adapter under a mask: what is added to a pruned weight, and its derivative.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace coppice {

/// The trained part of one weight W [out, in]; W itself stays. fp32, on one device.
struct LoraFactors {
  at::Tensor a;  // [rank, in]
  at::Tensor b;  // [out, rank]
};

/// A is uniform within ±1/√in (Kaiming's bound for a leaky rectifier of slope √5, as LoRA has it),
/// by `seed` alone; B is 0, so that training starts at W.
LoraFactors start_factors(int64_t out, int64_t in, int64_t rank, uint64_t seed, at::Device device);

/// W + scale · B A where W ≠ 0, and +0 elsewhere: the zeros of W are the mask. Summed in fp32,
/// rounded to `dtype`. A new tensor [out, in] without a graph.
/// Source: arXiv:2312.15230, section 3.2 (MaskLoRA).
at::Tensor effective_weight(const at::Tensor& weight, const LoraFactors& factors, double scale,
                            at::ScalarType dtype);

/// The derivatives with respect to A and B, given that with respect to the effective weight
/// [out, in]: with G = scale · (gradient where W ≠ 0), dA = Bᵀ G and dB = G Aᵀ. fp32.
LoraFactors factor_gradients(const at::Tensor& weight_gradient, const at::Tensor& weight,
                             const LoraFactors& factors, double scale);

}  // namespace coppice
