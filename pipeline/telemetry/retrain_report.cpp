#include "pipeline/telemetry/retrain_report.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/equal.h>

#include <stdexcept>

namespace coppice {

using nlohmann::json;

namespace {

std::string weight_name(const Architecture& architecture, int block, const LinearSpec& linear) {
  return in_block(architecture, block, linear.name) + ".weight";
}

int64_t zeros_of(const at::Tensor& weight) { return weight.eq(0).sum().item<int64_t>(); }

}  // namespace

ZeroCount count_zeros(const Architecture& architecture,
                      const std::function<at::Tensor(const std::string& name)>& tensor) {
  ZeroCount count;
  for (int block = 0; block < architecture.num_blocks; ++block) {
    for (const LinearSpec& linear : architecture.linears) {
      const at::Tensor weight = tensor(weight_name(architecture, block, linear));
      ++count.matrices;
      count.weights += weight.numel();
      count.zeros += zeros_of(weight);
    }
  }
  return count;
}

json retrain_recipe(const RetrainOptions& options) {
  const ReconstructOptions& training = options.training;
  return {{"rank", options.rank},
          {"lora_alpha", options.alpha},
          {"epochs", training.epochs},
          {"batch_size", training.batch_size},
          {"lr", training.lr},
          {"warmup", training.warmup},
          {"validation_fraction", training.validation_fraction},
          {"shuffle", training.shuffle},
          {"train_biases", training.train_biases},
          {"train_norms", training.train_norms},
          {"seed", training.seed}};
}

json retrained_block(const Architecture& architecture, int block, const NamedTensors& pruned,
                     const NamedTensors& result) {
  json linears = json::array(), trained = json::array();
  for (const LinearSpec& linear : architecture.linears) {
    const std::string name = weight_name(architecture, block, linear);
    const at::Tensor& weight = result.at(name);
    if (pruned.at(name).eq(0).logical_and_(weight.ne(0)).any().item<bool>()) {
      throw std::logic_error(name + ": a pruned weight is not zero any more");
    }
    const int64_t zeros = zeros_of(weight);
    linears.push_back(
        {{"name", name}, {"zeros", zeros}, {"sparsity", double(zeros) / double(weight.numel())}});
  }
  for (const auto& [name, tensor] : result) {
    if (!at::equal(tensor, pruned.at(name))) trained.push_back(name);
  }
  return {{"block", block}, {"linears", linears}, {"trained", trained}};
}

json retrain_report(const RetrainProgress& progress, const ReconstructOptions& training,
                    int64_t num_steps, const ZeroCount& before, const json& blocks) {
  int64_t zeros = 0;
  for (const json& block : blocks) {
    for (const json& linear : block.at("linears")) zeros += linear.at("zeros").get<int64_t>();
  }
  const bool is_better = progress.best > 0;
  std::string fallback = progress.fallback;
  if (!is_better && fallback.empty()) {
    fallback = "no epoch lowered the held-out loss of the pruned model";
  }
  return {{"kept", is_better ? "retrained" : "pruned"},
          {"best_epoch", progress.best},
          {"fallback", fallback},
          {"steps", progress.step},
          {"planned_steps", num_steps},
          {"tokens_seen", progress.tokens},
          {"lr", training.lr},
          {"loss_pruned", progress.loss_pruned.value_or(0)},
          {"loss_retrained", progress.loss_retrained.value_or(0)},
          {"validation_pruned", progress.validations.front()},
          {"validation_retrained", progress.validations[size_t(progress.best)]},
          {"epoch_losses", progress.losses},
          {"epoch_validations",
           std::vector<double>(progress.validations.begin() + 1, progress.validations.end())},
          {"matrices", before.matrices},
          {"weights", before.weights},
          {"zeros_pruned", before.zeros},
          {"zeros", zeros}};
}

}  // namespace coppice
