// What a retraining did: the parts of its coppice_report.json, with stable keys in SI units.
#pragma once

#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "stages/retrain/retrainer.h"
#include "stages/retrain_options.h"

namespace coppice {

/// Of the weights of the blocks' linears.
struct ZeroCount {
  int64_t matrices = 0;
  int64_t weights = 0;
  int64_t zeros = 0;
  double share() const { return weights > 0 ? double(zeros) / double(weights) : 0; }
};

/// `tensor` gives a weight by its full name. On the device's thread.
ZeroCount count_zeros(const Architecture& architecture,
                      const std::function<at::Tensor(const std::string& name)>& tensor);

/// Every option that has a meaning, by name.
nlohmann::json retrain_recipe(const RetrainOptions& options);

/// {`block`, `linears`[] {`name`, `zeros`, `sparsity`}, `trained`[]}: what is written, compared
/// with what it was. Throws std::logic_error if a zero is none any more. On the device's thread.
nlohmann::json retrained_block(const Architecture& architecture, int block,
                               const NamedTensors& pruned, const NamedTensors& result);

/// Losses, steps, tokens, zeros; keys as in the README.
nlohmann::json retrain_report(const RetrainProgress& progress, const ReconstructOptions& training,
                              int64_t num_steps, const ZeroCount& before,
                              const nlohmann::json& blocks);

}  // namespace coppice
