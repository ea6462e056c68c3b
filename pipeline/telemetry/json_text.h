// JSON as it is written to files and printed.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace coppice {

/// On one line, or with lines indented by so many. Always UTF-8: a path that is none must not cost
/// the report of a run, so bytes that are none become U+FFFD.
inline std::string json_text(const nlohmann::json& value, int indent = -1) {
  return value.dump(indent, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
}

}  // namespace coppice
