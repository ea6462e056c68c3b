// README.md of the output: what a reader of the model must know.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace coppice {

/// Made of the report alone (run_report) and the YAML front matter of the dense model's own card,
/// of which `license` and `language` are copied; `base_card` may be empty.
std::string model_card(const nlohmann::json& report, const std::string& base_card);

/// Likewise for a retrained model; `base_card` is the pruned model's.
std::string retrained_card(const nlohmann::json& report, const std::string& base_card);

}  // namespace coppice
