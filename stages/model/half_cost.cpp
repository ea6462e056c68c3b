#include "stages/model/half_cost.h"

namespace coppice {
namespace {

std::string first_input(const Architecture& architecture, Half half) {
  return architecture.linear(half == Half::kAttention ? "q" : "gate").input;
}

}  // namespace

int64_t half_parameters(const Architecture& architecture, Half half) {
  int64_t count = 0;
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half) count += linear.out * linear.in + (linear.has_bias ? linear.out : 0);
  }
  for (const NormSpec& norm : architecture.norms) {
    if (norm.half == half) count += norm.size;
  }
  return count;
}

double linear_flop(const Architecture& architecture, Half half, double tokens) {
  double flop = 0;
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half != half) continue;
    flop += 2.0 * tokens * static_cast<double>(linear.out) * static_cast<double>(linear.in);
  }
  return flop;
}

double first_linear_flop(const Architecture& architecture, Half half, double tokens) {
  const std::string input = first_input(architecture, half);
  double flop = 0;
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half != half || linear.input != input) continue;
    flop += 2.0 * tokens * static_cast<double>(linear.out) * static_cast<double>(linear.in);
  }
  return flop;
}

double attention_flop(const Architecture& architecture, Half half, double tokens, double seqlen) {
  if (half != Half::kAttention) return 0;
  // Two products over half of the square of positions.
  const double width = static_cast<double>(architecture.heads * architecture.head_dim);
  return 2.0 * tokens * seqlen * width;
}

int64_t kept_activations(const Architecture& architecture, Half half) {
  int64_t width = 3 * architecture.hidden;  // input, x̂ and gain ∘ x̂, output
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half) width += linear.out;
  }
  return width + architecture.linear(half == Half::kAttention ? "o" : "down").in;
}

}  // namespace coppice
