#include "stages/model/half_cost.h"

#include <algorithm>

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

std::map<std::string, int64_t> inputs_of(const Architecture& architecture, Half half) {
  std::map<std::string, int64_t> inputs;
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half) inputs[linear.input] = linear.in;
  }
  return inputs;
}

double attention_flop(const Architecture& architecture, Half half, double tokens, double seqlen) {
  if (half != Half::kAttention) return 0;
  // Two products over half of the square of positions.
  const double width = static_cast<double>(architecture.heads * architecture.head_dim);
  return 2.0 * tokens * seqlen * width;
}

int64_t largest_weight(const Architecture& architecture, Half half) {
  int64_t largest = 0;
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half) largest = std::max(largest, linear.out * linear.in);
  }
  return largest;
}

TouchedElements touched_activations(const Architecture& architecture, Half half) {
  const auto hidden = static_cast<double>(architecture.hidden);
  // Normalise and apply the gain: read and write twice; add the residual: read twice, write once.
  // Back: the same the other way, and the way around the residual.
  TouchedElements touched{7 * hidden, 9 * hidden};
  if (half == Half::kAttention) {
    const auto q = static_cast<double>(architecture.heads * architecture.head_dim);
    const auto k = static_cast<double>(architecture.kv_heads * architecture.head_dim);
    // Rotate q and k, bring the heads side by side: read and write.
    touched.forward += 2 * (q + k) + 2 * q;
    touched.backward += 2 * (q + k) + 2 * q + 2 * k;
  } else {
    const auto ffn = static_cast<double>(architecture.ffn);
    // activation(gate) ∘ up: two in, one out; back: three in, two out.
    touched.forward += 3 * ffn;
    touched.backward += 5 * ffn;
  }
  return touched;
}

int64_t kept_activations(const Architecture& architecture, Half half) {
  int64_t width = 3 * architecture.hidden;  // input, x̂ and gain ∘ x̂, output
  for (const LinearSpec& linear : architecture.linears) {
    if (linear.half == half) width += linear.out;
  }
  return width + architecture.linear(half == Half::kAttention ? "o" : "down").in;
}

}  // namespace coppice
