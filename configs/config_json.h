// A checkpoint's config.json, asked key by key.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "configs/errors.h"

namespace coppice {

/// An object of JSON and where it lies. A key that is absent and one that is null are the same:
/// nothing. A value of another type than the one asked for is a ConfigError "<file>: <key path>:
/// <value>: <what would be right>". Immutable: any thread.
class ConfigJson {
 public:
  /// Throws IoError for an absent file, ConfigError for what is no JSON object.
  explicit ConfigJson(const std::filesystem::path& path);

  bool has(const std::string& key) const { return find(key) != nullptr; }
  bool is_empty() const { return object_.empty(); }
  bool is_null(const std::string& key) const;  // there, and null
  std::optional<int64_t> whole(const std::string& key) const;
  std::optional<double> number(const std::string& key) const;  // finite; a whole one is one, too
  double positive(const std::string& key) const;               // there, and greater than 0
  std::optional<bool> fact(const std::string& key) const;
  std::optional<std::string> word(const std::string& key) const;
  /// A string as it is, anything else as JSON: "true", "2", "absolute"; "" for nothing.
  std::string text(const std::string& key) const;
  std::optional<ConfigJson> object(const std::string& key) const;
  /// A number or a list of them; empty for nothing.
  std::vector<int64_t> whole_list(const std::string& key) const;
  /// A list of strings; empty for nothing.
  std::vector<std::string> word_list(const std::string& key) const;

  /// The error that names file, key path and the value found ("absent" where there is none).
  ConfigError wrong(const std::string& key, const std::string& right) const;

 private:
  ConfigJson(std::string file, std::string path, nlohmann::json object);
  const nlohmann::json* find(const std::string& key) const;

  std::string file_;
  std::string path_;  // of this object within the file: "rope_scaling.", empty at the top
  nlohmann::json object_;
};

}  // namespace coppice
