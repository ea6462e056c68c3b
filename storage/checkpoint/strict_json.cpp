// Watches the parser event by event, so that hostile text is refused before a document is built.
#include "storage/checkpoint/strict_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "storage/errors.h"

namespace coppice {
namespace {

using nlohmann::json;

constexpr int kMaxDepth = 16;

/// Sees every event of the parser; the library itself neither limits depth nor reports duplicates.
class Guard {
 public:
  Guard(const std::string& path, uint64_t offset) : path_(path), offset_(offset) {}

  bool operator()(int depth, json::parse_event_t event, const json& parsed) {
    if (event == json::parse_event_t::object_start || event == json::parse_event_t::array_start) {
      open(depth);
    } else if (event == json::parse_event_t::key) {
      add_key(depth, parsed.get_ref<const std::string&>());
    }
    return true;
  }

 private:
  void open(int depth) {
    if (depth >= kMaxDepth) {
      throw CorruptionError(path_, offset_, fmt::format("JSON at most {} levels deep", kMaxDepth),
                            "deeper nesting");
    }
    keys_.resize(depth + 1);  // whatever was open at this depth or below has been closed
    keys_.emplace_back();
  }

  // The parser gives an object's keys the depth of what lies in it, one more than its own.
  void add_key(int depth, const std::string& key) {
    if (keys_[depth].insert(key).second) return;
    throw CorruptionError(path_, offset_, "every name once", fmt::format("'{}' twice", key));
  }

  const std::string& path_;
  const uint64_t offset_;
  std::vector<std::set<std::string>> keys_;  // by depth
};

}  // namespace

json parse_strict_json(const std::string& path, std::string_view text, uint64_t text_offset) {
  Guard guard(path, text_offset);
  try {
    return json::parse(text, [&guard](int depth, json::parse_event_t event, json& parsed) {
      return guard(depth, event, parsed);
    });
  } catch (const json::exception& error) {
    const auto* at = dynamic_cast<const json::parse_error*>(&error);
    throw CorruptionError(path, text_offset + (at != nullptr ? at->byte : 0), "valid JSON",
                          error.what());
  }
}

}  // namespace coppice
