#include "pipeline/telemetry/zeros.h"

namespace coppice {

void Zeros::add(const nlohmann::json& block) {
  for (const nlohmann::json& linear : block.at("linears")) {
    const auto count = linear.at("weights").get<double>();
    weights += count;
    zeros += count * linear.at("sparsity").get<double>();
    ++matrices;
  }
}

}  // namespace coppice
