// tiny_llama with a mixture of experts instead of its MLP.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/stack.h>

#include "tests/support/tiny_llama.h"

namespace coppice::testing {

/// Five experts, two a token, weights that sum to 1.
inline Architecture tiny_moe(int num_blocks = 1) {
  Architecture a = tiny_llama(num_blocks);
  a.ffn = 11;
  a.experts = {.count = 5, .per_token = 2, .router = "mlp.gate", .sum_to_one = true};
  std::erase_if(a.linears, [](const LinearSpec& spec) { return spec.half == Half::kMlp; });
  for (int expert = 0; expert < a.experts.count; ++expert) {
    const std::string number = std::to_string(expert), name = "mlp.experts." + number;
    const auto add = [&](const char* part, const std::string& input, int64_t out, int64_t in) {
      a.linears.push_back({role_of_expert(part, expert), name + "." + part + "_proj",
                           "expert_" + number + input, Half::kMlp, out, in, true, expert});
    };
    add("gate", "_in", a.ffn, a.hidden);
    add("up", "_in", a.ffn, a.hidden);
    add("down", "_units", a.hidden, a.ffn);
  }
  return a;
}

/// Gives the first block a router that passes expert 4 by: its logit is 0, and of the others two
/// are above it. Dense activations after the block are made again.
inline void starve_the_last_expert(TinySpan& span) {
  at::Tensor& router = span.job.dense[0].router;  // [5, hidden]
  router = at::stack({router[0], -router[0], router[1], -router[1], at::zeros_like(router[0])});
  const BlockWeights weights =
      converted(span.architecture, span.job.dense[0], Half::kMlp, span.job.compute);
  for (size_t window = 0; window < span.boundaries.held[1].size(); ++window) {
    const MicroBatch x{span.boundaries.held[1][window], {TinySpan::kSeqlen}};
    span.boundaries.held[2][window] = forward_half(1, span.architecture, weights, span.rotary, x);
  }
}

}  // namespace coppice::testing
