// JSON as it is written to files and printed.
#pragma once

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

namespace coppice {

/// On one line, or with lines indented by so many. Always UTF-8: a path that is none must not cost
/// the report of a run, so bytes that are none become U+FFFD.
inline std::string json_text(const nlohmann::json& value, int indent = -1) {
  return value.dump(indent, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
}

/// A value that may have overflowed: null then. JSON has no NaN, and a record must be the same
/// whether it was made by this process or read from the journal.
inline nlohmann::json finite_or_null(double value) {
  return std::isfinite(value) ? nlohmann::json(value) : nlohmann::json();
}

/// What finite_or_null() was given; NaN of null.
inline double number_or_nan(const nlohmann::json& value) {
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

}  // namespace coppice
