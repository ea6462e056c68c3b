#include "stages/retrain/resident_forward.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>

#include <cmath>
#include <utility>
#include <vector>

#include "stages/model/block_forward.h"

namespace coppice {
namespace {

/// In the dtype of computation, as hidden states are made from it when a model is streamed.
std::function<at::Tensor(const std::string&)> computed_with(const ResidentModel& model) {
  return [&model](const std::string& name) { return model.tensors.at(name).to(model.compute); };
}

}  // namespace

ResidentForward::ResidentForward(const ResidentModel& model, int64_t length)
    : model_(model),
      length_(length),
      rotary_(make_rotary_table(model.architecture.rope, model.architecture.head_dim, length,
                                model.compute,
                                model.tensors.at(model.architecture.embedding).device())),
      stem_(gather_stem(model.architecture, computed_with(model))),
      head_{.architecture = model.architecture,
            .final = gather_final(model.architecture, computed_with(model)),
            .rows = model.tensors.at(model.architecture.head)} {}

at::Tensor ResidentForward::embedded(const at::Tensor& ids) const {
  const at::Tensor& rows = model_.tensors.at(model_.architecture.embedding);
  std::vector<at::Tensor> sequences;
  for (const at::Tensor& sequence : ids.unbind(0)) {
    const at::Tensor embedding = rows.index_select(0, sequence).to(model_.compute);
    sequences.push_back(embed(model_.architecture, stem_, embedding));
  }
  return at::cat(sequences);  // [tokens, hidden]
}

at::Tensor ResidentForward::block_output(int block, const NamedTensors& tensors,
                                         const at::Tensor& hidden, int64_t sequences) const {
  const BlockWeights weights = gather_block(
      model_.architecture, block, [&](const std::string& name) { return tensors.at(name); });
  MicroBatch x{hidden, std::vector<int>(static_cast<size_t>(sequences), static_cast<int>(length_))};
  for (int half = 2 * block; half < 2 * block + 2; ++half) {
    x.hidden = forward_half(half, model_.architecture, weights, rotary_, x);
  }
  return std::move(x.hidden);
}

double ResidentForward::loss_and_gradients(const at::Tensor& ids, const Leaves& leaves,
                                           const Take& take) const {
  const int num_blocks = static_cast<int>(model_.architecture.num_blocks);
  const int64_t sequences = ids.size(0);
  std::vector<at::Tensor> inputs;  // of every block; the rest is computed again on the way back
  at::Tensor hidden = embedded(ids);
  {
    const at::NoGradGuard no_graph;
    for (int block = 0; block < num_blocks; ++block) {
      inputs.push_back(hidden);
      hidden = block_output(block, leaves(block), hidden, sequences);
    }
  }
  at::Tensor gradient;
  const double sum = next_token_loss(head_, hidden, ids, &gradient).item<double>();
  const double loss = sum / static_cast<double>(sequences * (ids.size(1) - 1));
  if (!std::isfinite(loss)) return loss;
  hidden.reset();

  for (int block = num_blocks - 1; block >= 0; --block) {
    const NamedTensors tensors = leaves(block);
    const at::Tensor x = inputs.back().detach().requires_grad_(block > 0);
    block_output(block, tensors, x, sequences).backward(gradient);
    take(block, tensors);
    gradient = x.grad();
    inputs.pop_back();
  }
  return loss;
}

}  // namespace coppice
