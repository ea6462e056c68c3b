// The arithmetic and the size of one half of a block, from its shapes alone.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "stages/model/architecture.h"

namespace coppice {

/// Elements of all weights, biases, norms and the router of the half: of all experts.
int64_t half_parameters(const Architecture& architecture, Half half);

/// FLOP of the linears on `tokens` tokens, forward only; of those that read the half's normalised
/// input. Of experts what tokens go through, the router included.
double linear_flop(const Architecture& architecture, Half half, double tokens);
double first_linear_flop(const Architecture& architecture, Half half, double tokens);

/// What linears read.
struct ReadInput {
  int64_t width = 0;
  double share_of_tokens = 1;  // of an expert's, in the mean over experts
};

/// What the linears of the half read, by name (LinearSpec::input).
std::map<std::string, ReadInput> inputs_of(const Architecture& architecture, Half half);

/// FLOP of attention in sequences of `seqlen` by the pairs that its mask lets through, forward
/// only; where windows differ, the mean over the blocks. 0 for the MLP half.
double attention_flop(const Architecture& architecture, Half half, double tokens, double seqlen);

/// Elements of the largest weight of the half.
int64_t largest_weight(const Architecture& architecture, Half half);

/// Sequences of one length that go through a half at once.
struct BatchShape {
  double sequences = 1;
  int64_t seqlen = 0;
  double element = 4;   // bytes, in the compute dtype
  bool is_host = true;  // see grouped_attention()
};

/// Bytes that one forward pass keeps for its backward, its output included and its input not,
/// tensor by tensor; where windows of attention differ, of the block that keeps most. Exact for
/// experts, too: a token goes through as many as any other.
double kept_bytes(const Architecture& architecture, Half half, const BatchShape& batch);

/// Bytes beside what is kept, while the half runs or its gradients take the place of what is kept,
/// at the peak of both.
double passing_bytes(const Architecture& architecture, Half half, const BatchShape& batch);

/// Elements per token that the half reads and writes outside of its products and its attention.
/// Counted pass by pass over the code of attention.cpp and mlp.cpp.
struct TouchedElements {
  double forward = 0;
  double backward = 0;
};
TouchedElements touched_activations(const Architecture& architecture, Half half);

}  // namespace coppice
