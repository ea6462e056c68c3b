// What the pruned linears of a report add up to.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>

namespace coppice {

/// Counts weights, not linears: those of different sizes may lose different shares.
struct Zeros {
  int64_t matrices = 0;
  double weights = 0;
  double zeros = 0;
  void add(const nlohmann::json& block);  // with "linears" [{"sparsity", "weights"}]
  double share() const { return weights > 0 ? zeros / weights : 0; }
};

}  // namespace coppice
