// Watches the parser event by event, so that hostile text is refused before a document is built.
#include "storage/checkpoint/strict_json.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "storage/errors.h"

namespace coppice {
namespace {

using nlohmann::json;

constexpr size_t kMaxDepth = 16;

/// Sees every event of the parser; the library itself neither limits depth nor reports duplicates.
/// As a handler of its own and not as the callback of json::parse, which after every object that
/// ends goes through all its parent has: minutes for a header of a hundred thousand tensors.
class Guard final : public nlohmann::json_sax<json> {
 public:
  Guard(const std::string& path, uint64_t offset) : path_(path), offset_(offset) {}

  bool start_object(size_t) override { return open(); }
  bool start_array(size_t) override { return open(); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool key(std::string& key) override {
    if (keys_.back().insert(key).second) return true;
    throw CorruptionError(path_, offset_, "every name once", fmt::format("'{}' twice", key));
  }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(json::number_integer_t) override { return true; }
  bool number_unsigned(json::number_unsigned_t) override { return true; }
  bool number_float(json::number_float_t, const std::string&) override { return true; }
  bool string(std::string&) override { return true; }
  bool binary(json::binary_t&) override { return true; }
  bool parse_error(size_t, const std::string&, const json::exception&) override {
    return false;  // json::parse finds it again and says it
  }

 private:
  bool open() {
    if (keys_.size() >= kMaxDepth) {
      throw CorruptionError(path_, offset_, fmt::format("JSON at most {} levels deep", kMaxDepth),
                            "deeper nesting");
    }
    keys_.emplace_back();
    return true;
  }
  bool close() {
    keys_.pop_back();
    return true;
  }

  const std::string& path_;
  const uint64_t offset_;
  std::vector<std::set<std::string>> keys_;  // of what is open, outermost first
};

}  // namespace

json parse_strict_json(const std::string& path, std::string_view text, uint64_t text_offset) {
  Guard guard(path, text_offset);
  json::sax_parse(text, &guard);  // hostile text is refused before a document is built
  try {
    return json::parse(text);
  } catch (const json::exception& error) {
    const auto* at = dynamic_cast<const json::parse_error*>(&error);
    throw CorruptionError(path, text_offset + (at != nullptr ? at->byte : 0), "valid JSON",
                          error.what());
  }
}

}  // namespace coppice
