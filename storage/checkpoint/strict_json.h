// JSON from files that may lie: of sane depth, and nothing said twice.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace coppice {

/// Parses `text`, which lies at byte `text_offset` of file `path`. Throws CorruptionError for bad
/// syntax, nesting deeper than 16, and an object that names a key twice (a lenient parser keeps one
/// of the two, and readers differ in which).
nlohmann::json parse_strict_json(const std::string& path, std::string_view text,
                                 uint64_t text_offset = 0);

}  // namespace coppice
