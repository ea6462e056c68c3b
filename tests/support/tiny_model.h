// Two blocks of tiny_llama with an embedding and a head, half of the weights zero, as a model that
// lies in memory; and text that it can learn.
#pragma once

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

#include "stages/retrain/retrainer.h"
#include "tests/support/tiny_llama.h"

namespace coppice::testing {

inline ResidentModel tiny_pruned_model(at::ScalarType stored = at::kFloat,
                                       at::ScalarType compute = at::kFloat) {
  at::manual_seed(3);
  at::set_num_threads(1);
  ResidentModel model;
  Architecture& architecture = model.architecture = tiny_llama();
  architecture.num_blocks = 2;
  architecture.dtype = stored == at::kFloat ? "F32" : "BF16";
  architecture.embedding = "model.embed_tokens.weight";
  architecture.final_norm = "model.norm";
  architecture.head = "lm_head.weight";
  model.compute = compute;
  const auto draw = [&](const NamedShape& tensor) {
    const at::Tensor noise = at::randn(tensor.shape);
    const bool is_norm = tensor.name.find("norm") != std::string::npos;
    const double scale = 1 / std::sqrt(static_cast<double>(tensor.shape.back()));
    model.tensors[tensor.name] = is_norm ? noise.mul(0.2).add(1) : noise.mul(scale);
  };
  for (int block = 0; block < architecture.num_blocks; ++block) {
    for (const NamedShape& tensor : block_tensors(architecture, block)) draw(tensor);
    for (const LinearSpec& spec : architecture.linears) {
      at::Tensor& weight = model.tensors[in_block(architecture, block, spec.name) + ".weight"];
      weight = weight.masked_fill(at::rand(weight.sizes()).lt(0.5), 0);
    }
  }
  for (const NamedShape& tensor : outer_tensors(architecture)) draw(tensor);
  for (auto& [name, tensor] : model.tensors) tensor = tensor.to(stored);
  return model;
}

/// [windows, seqlen]: every window starts at a token of its own and counts on in threes.
inline at::Tensor counting_text(int64_t windows, int64_t seqlen, int64_t vocab = 31) {
  const at::Tensor starts = at::arange(windows, at::kLong).mul(7).unsqueeze(1);
  return (starts + at::arange(seqlen, at::kLong).mul(3)).remainder(vocab);
}

inline RetrainOptions tiny_retrain_options(double lr = 1e-2, int epochs = 2) {
  RetrainOptions options;
  options.rank = 4;
  options.alpha = 8;
  options.training.lr = lr;
  options.training.epochs = epochs;
  options.training.batch_size = 2;
  options.training.validation_fraction = 0.25;
  return options;
}

inline void finish(Retrainer& trainer) {
  while (!trainer.is_finished()) trainer.advance();
}

}  // namespace coppice::testing
