// A Llama block small enough to check by hand, with random weights, as a span a stage can work on.
#pragma once

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <string>
#include <utility>

#include "stages/model/block_forward.h"
#include "stages/span_job.h"
#include "tests/support/memory_boundaries.h"

namespace coppice::testing {

/// Odd sizes, grouped-query heads, every linear with a bias.
inline Architecture tiny_llama(int num_blocks = 1) {
  Architecture a;
  a.family = "llama";
  a.dtype = "F32";
  a.num_blocks = num_blocks;
  a.hidden = 20;
  a.ffn = 33;
  a.heads = 4;
  a.kv_heads = 2;
  a.head_dim = 6;
  a.vocab = 31;
  a.max_positions = 64;
  a.block_prefix = "model.layers.{block}.";
  const int64_t q = a.heads * a.head_dim, kv = a.kv_heads * a.head_dim;
  const auto add = [&](std::string role, std::string name, std::string input, Half half,
                       int64_t out, int64_t in) {
    a.linears.push_back({std::move(role), std::move(name), std::move(input), half, out, in, true});
  };
  add("q", "self_attn.q_proj", "attention_in", Half::kAttention, q, a.hidden);
  add("k", "self_attn.k_proj", "attention_in", Half::kAttention, kv, a.hidden);
  add("v", "self_attn.v_proj", "attention_in", Half::kAttention, kv, a.hidden);
  add("o", "self_attn.o_proj", "attention_out", Half::kAttention, a.hidden, q);
  add("gate", "mlp.gate_proj", "mlp_in", Half::kMlp, a.ffn, a.hidden);
  add("up", "mlp.up_proj", "mlp_in", Half::kMlp, a.ffn, a.hidden);
  add("down", "mlp.down_proj", "mlp_units", Half::kMlp, a.hidden, a.ffn);
  a.norms = {{"before_attention", "input_layernorm", Half::kAttention, a.hidden},
             {"before_mlp", "post_attention_layernorm", Half::kMlp, a.hidden}};
  a.units = {{"ffn", {{"gate", "up"}, {}, "down"}}, {"heads", {{"q"}, {"k", "v"}, "o"}}};
  return a;
}

inline BlockWeights random_block(const Architecture& architecture, at::ScalarType dtype,
                                 int block = 0) {
  std::map<std::string, at::Tensor> tensors;
  for (const NamedShape& tensor : block_tensors(architecture, block)) {
    const at::Tensor noise = at::randn(tensor.shape, at::TensorOptions(at::kDouble));
    const bool is_norm = tensor.name.find("layernorm") != std::string::npos;
    const double scale = 1 / std::sqrt(static_cast<double>(tensor.shape.back()));
    tensors[tensor.name] = (is_norm ? noise.mul(0.2).add(1) : noise.mul(scale)).to(dtype);
  }
  return gather_block(architecture, block,
                      [&](const std::string& name) { return tensors.at(name); });
}

/// A few blocks, `num_windows` calibration windows, and the dense activations at all boundaries.
struct TinySpan {
  static constexpr int64_t kSeqlen = 7;

  Architecture architecture;
  MemoryBoundaries boundaries;
  RotaryTable rotary;
  SpanJob job;

  TinySpan(int num_windows, at::ScalarType stored, at::ScalarType compute, int seed = 1,
           int num_blocks = 1)
      : TinySpan(tiny_llama(num_blocks), num_windows, stored, compute, seed) {}

  TinySpan(Architecture described, int num_windows, at::ScalarType stored, at::ScalarType compute,
           int seed = 1)
      : architecture(std::move(described)),
        rotary(make_rotary_table(architecture.rope, architecture.head_dim, 64, compute, at::kCPU)),
        job{{0, 2 * int(architecture.num_blocks)},
            architecture,
            seeded_blocks(stored, seed),
            compute,
            rotary,
            boundaries,
            {},
            {}} {
    at::set_num_threads(1);  // waking a team costs more than these products
    boundaries.compute = compute;
    for (int window = 0; window < num_windows; ++window) {
      MicroBatch x{at::randn({kSeqlen, architecture.hidden}).to(compute), {kSeqlen}};
      boundaries.held[0].push_back(x.hidden);
      for (int half = 0; half < job.halves.last; ++half) {
        const BlockWeights weights =
            converted(architecture, job.dense_at(half), half_of(half), compute);
        x.hidden = forward_half(half, architecture, weights, rotary, x);
        boundaries.held[half + 1].push_back(x.hidden);
      }
    }
    job.variants.emplace_back();
    prune_half_of_the_weights();
  }
  TinySpan(const TinySpan&) = delete;

  Variant& variant() { return job.variants.front(); }

 private:
  std::vector<BlockWeights> seeded_blocks(at::ScalarType stored, int seed) const {
    at::manual_seed(static_cast<uint64_t>(seed));
    std::vector<BlockWeights> blocks;
    for (int block = 0; block < architecture.num_blocks; ++block) {
      blocks.push_back(random_block(architecture, stored, block));
    }
    return blocks;
  }

  void prune_half_of_the_weights() {
    for (int block = 0; block < architecture.num_blocks; ++block) {
      for (const LinearSpec& spec : architecture.linears) {
        const std::string name = in_block(architecture, block, spec.name) + ".weight";
        const at::Tensor mask = at::rand({spec.out, spec.in}).lt(0.5);
        const at::Tensor& dense = job.dense_at(2 * block).linears.at(spec.role).weight;
        variant().masks[name] = mask;
        variant().adapted[name] = dense.masked_fill(mask.logical_not(), 0);
      }
    }
  }
};

}  // namespace coppice::testing
