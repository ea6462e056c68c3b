#include "configs/config_json.h"

#include <fmt/format.h>

#include <cmath>
#include <utility>

#include "storage/io/file.h"  // read_file

namespace coppice {
namespace {

nlohmann::json parsed(const std::string& file, const std::string& text) {
  nlohmann::json json;
  try {
    json = nlohmann::json::parse(text);
  } catch (const nlohmann::json::parse_error& error) {
    throw ConfigError(fmt::format("{}: no JSON at byte {}: {}", file, error.byte, error.what()));
  }
  if (!json.is_object()) {
    throw ConfigError(fmt::format("{}: a JSON object is wanted, found {}", file, json.type_name()));
  }
  return json;
}

// Long values (a list of a thousand token ids) would bury the message.
std::string shown(const nlohmann::json& value) {
  constexpr size_t kMost = 80;
  // A string that is no UTF-8 must not turn the report of an error into another one.
  std::string text = value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  return text.size() <= kMost ? text : text.substr(0, kMost) + "...";
}

}  // namespace

ConfigJson::ConfigJson(const std::filesystem::path& path)
    : file_(path.string()), object_(parsed(file_, read_file(path))) {}

ConfigJson::ConfigJson(std::string file, std::string path, nlohmann::json object)
    : file_(std::move(file)), path_(std::move(path)), object_(std::move(object)) {}

const nlohmann::json* ConfigJson::find(const std::string& key) const {
  const auto found = object_.find(key);
  return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool ConfigJson::is_null(const std::string& key) const {
  return object_.contains(key) && find(key) == nullptr;
}

ConfigError ConfigJson::wrong(const std::string& key, const std::string& right) const {
  const nlohmann::json* value = find(key);
  return ConfigError(fmt::format("{}: {}{}: {}: {}", file_, path_, key,
                                 value == nullptr ? "absent" : shown(*value), right));
}

std::optional<int64_t> ConfigJson::whole(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_integer()) throw wrong(key, "must be a whole number");
  return value->get<int64_t>();
}

std::optional<double> ConfigJson::number(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !std::isfinite(value->get<double>())) {
    throw wrong(key, "must be a number");
  }
  return value->get<double>();
}

double ConfigJson::positive(const std::string& key) const {
  const std::optional<double> found = number(key);
  if (found && *found > 0) return *found;
  throw wrong(key, "must be a number greater than 0");
}

std::optional<bool> ConfigJson::fact(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_boolean()) throw wrong(key, "must be true or false");
  return value->get<bool>();
}

std::optional<std::string> ConfigJson::word(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) throw wrong(key, "must be a string");
  return value->get<std::string>();
}

std::string ConfigJson::text(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return "";
  return value->is_string() ? value->get<std::string>() : value->dump();
}

std::optional<ConfigJson> ConfigJson::object(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return std::nullopt;
  if (!value->is_object()) throw wrong(key, "must be an object or null");
  return ConfigJson(file_, path_ + key + ".", *value);
}

std::vector<int64_t> ConfigJson::whole_list(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return {};
  const nlohmann::json list = value->is_array() ? *value : nlohmann::json::array({*value});
  std::vector<int64_t> numbers;
  for (const nlohmann::json& item : list) {
    if (!item.is_number_integer()) throw wrong(key, "must be a whole number or a list of them");
    numbers.push_back(item.get<int64_t>());
  }
  return numbers;
}

std::vector<std::string> ConfigJson::word_list(const std::string& key) const {
  const nlohmann::json* value = find(key);
  if (value == nullptr) return {};
  std::vector<std::string> words;
  if (!value->is_array()) throw wrong(key, "must be a list of strings");
  for (const nlohmann::json& item : *value) {
    if (!item.is_string()) throw wrong(key, "must be a list of strings");
    words.push_back(item.get<std::string>());
  }
  return words;
}

}  // namespace coppice
