#include "stages/retrain/lora.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/zeros.h>

#include <cmath>

namespace coppice {

LoraFactors start_factors(int64_t out, int64_t in, int64_t rank, uint64_t seed, at::Device device) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  const double bound = 1 / std::sqrt(static_cast<double>(in));
  const at::Tensor uniform = at::rand({rank, in}, generator, at::kFloat);  // [0, 1)
  return {uniform.mul(2 * bound).sub_(bound).to(device),
          at::zeros({out, rank}, at::TensorOptions(at::kFloat).device(device))};
}

at::Tensor effective_weight(const at::Tensor& weight, const LoraFactors& factors, double scale,
                            at::ScalarType dtype) {
  const at::NoGradGuard no_graph;
  at::Tensor sum = at::addmm(weight.to(at::kFloat), factors.b, factors.a, /*beta=*/1, scale);
  return sum.masked_fill_(weight.eq(0), 0).to(dtype);
}

LoraFactors factor_gradients(const at::Tensor& weight_gradient, const at::Tensor& weight,
                             const LoraFactors& factors, double scale) {
  const at::NoGradGuard no_graph;
  const at::Tensor kept = weight_gradient.to(at::kFloat).masked_fill(weight.eq(0), 0).mul_(scale);
  return {factors.b.t().mm(kept), kept.mm(factors.a.t())};
}

}  // namespace coppice
