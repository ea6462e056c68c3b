#include "stages/scores/random.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/rand.h>

namespace coppice {

at::Tensor random_score(const at::Tensor& weight, uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  return at::rand(weight.sizes(), generator, at::kFloat).to(weight.device());
}

}  // namespace coppice
