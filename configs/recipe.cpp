#include "configs/recipe.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <regex>

#include "configs/errors.h"
#include "configs/plain_yaml.h"
#include "configs/value_form.h"
#include "storage/io/file.h"  // read_file

namespace coppice {
namespace {

std::vector<std::string> known_sections() {
  std::vector<std::string> sections;
  for (const RecipeKey& key : recipe_keys()) {
    if (sections.empty() || sections.back() != key.section) sections.push_back(key.section);
  }
  return sections;
}

std::string first_key(const std::string& section) {
  const auto& keys = recipe_keys();
  return std::find_if(keys.begin(), keys.end(),
                      [&](const RecipeKey& key) { return key.section == section; })
      ->name;
}

// A key in the wrong section is a likelier mistake than a typing error that leads elsewhere.
std::string nearest_path(const std::string& section, const std::string& name) {
  std::vector<std::string> paths;
  for (const RecipeKey& key : recipe_keys()) {
    if (key.name == name) return key.path();
    paths.push_back(key.path());
  }
  return nearest(section + "." + name, paths);
}

std::string nearest_flag(const std::string& flag) {
  std::vector<std::string> flags;
  for (const RecipeKey& key : recipe_keys()) {
    if ("--" + key.name == flag) return key.flag();  // --method is --prune-method
    flags.push_back(key.flag());
  }
  return nearest(flag, flags);
}

void set_at(const std::string& where, const RecipeKey& key, Recipe& recipe,
            const std::string& text) {
  try {
    key.set(recipe, text);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("{}: {}", where, error.what()));
  }
}

// The text form that RecipeKey::set reads, out of a YAML value.
std::string text_of(const std::string& where, const RecipeKey& key, const YamlNode& node) {
  if (!key.is_list) {
    if (node.kind == YamlNode::Kind::kScalar) return node.text;
    throw ConfigError(
        fmt::format("{}: {}: one value is wanted, as in {}: {}", where,
                    node.kind == YamlNode::Kind::kNothing ? "nothing" : "a list or map", key.name,
                    key.get(Recipe{})));
  }
  const std::string advice = fmt::format("a list is wanted, as in {}: [lm_head]", key.name);
  if (node.kind != YamlNode::Kind::kList) throw ConfigError(fmt::format("{}: {}", where, advice));
  std::vector<std::string> names;
  for (const YamlNode& item : node.children) {
    if (item.kind != YamlNode::Kind::kScalar || item.text.empty() || item.text.front() == ',') {
      throw ConfigError(fmt::format("{}: an entry that is no name: {}", where, advice));
    }
    names.push_back(item.text);
  }
  return join_names(names);
}

void read_section(const std::string& file, const YamlNode& section, Recipe& recipe,
                  std::vector<std::string>& keys_set) {
  for (const YamlNode& node : section.children) {
    const std::string path = section.key + "." + node.key;
    const std::string where = fmt::format("{}:{}: {}", file, node.line, path);
    const RecipeKey* key = find_recipe_key(path);
    if (key == nullptr) {
      throw ConfigError(fmt::format("{}: unknown key; did you mean {}?", where,
                                    nearest_path(section.key, node.key)));
    }
    set_at(where, *key, recipe, text_of(where, *key, node));
    keys_set.push_back(path);
  }
}

size_t edit_distance(const std::string& from, const std::string& to) {
  std::vector<size_t> row(to.size() +
                          1);  // distances of a prefix of `from` to all prefixes of `to`
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= from.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= to.size(); ++j) {
      const size_t replaced = diagonal + (from[i - 1] == to[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[to.size()];
}

// Quoted unless it is a plain word or number to every YAML reader ("2:4" is 124 to YAML 1.1).
std::string yaml_scalar(const std::string& text) {
  static const std::regex kPlain("[A-Za-z0-9_][A-Za-z0-9_.+-]*");
  static const std::regex kNull("null|Null|NULL");
  if (std::regex_match(text, kPlain) && !std::regex_match(text, kNull)) return text;
  std::string quoted = "'";
  for (const char letter : text) quoted += letter == '\'' ? "''" : std::string(1, letter);
  return quoted + "'";
}

std::string yaml_value(const RecipeKey& key, const std::string& text) {
  if (!key.is_list) return yaml_scalar(text);
  std::vector<std::string> entries = split_names(text);
  for (std::string& entry : entries) entry = yaml_scalar(entry);
  return fmt::format("[{}]", fmt::join(entries, ", "));
}

}  // namespace

std::string RecipeKey::flag() const {
  if (!flag_override.empty()) return flag_override;
  std::string flag = "--" + name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

std::string RecipeKey::path() const { return section + "." + name; }

const RecipeKey* find_recipe_key(const std::string& path_or_flag) {
  for (const RecipeKey& key : recipe_keys()) {
    if (key.path() == path_or_flag || key.flag() == path_or_flag) return &key;
  }
  return nullptr;
}

void set_recipe_key(Recipe& recipe, const std::string& key, const std::string& text) {
  const RecipeKey* known = find_recipe_key(key);
  if (known == nullptr) {
    const size_t dot = key.find('.');
    const std::string advice = dot == std::string::npos
                                   ? nearest_flag(key)
                                   : nearest_path(key.substr(0, dot), key.substr(dot + 1));
    throw ConfigError(fmt::format("{}: unknown key; did you mean {}?", key, advice));
  }
  set_at(key, *known, recipe, text);
}

std::vector<std::string> read_recipe(const std::filesystem::path& path, Recipe& recipe) {
  const std::string file = path.string();
  const YamlNode root = parse_yaml(file, read_file(path));
  if (root.kind == YamlNode::Kind::kScalar || root.kind == YamlNode::Kind::kList) {
    throw ConfigError(fmt::format("{}:{}: no recipe: sections are wanted ({})", file, root.line,
                                  fmt::join(known_sections(), ", ")));
  }
  Recipe result = recipe;
  std::vector<std::string> keys_set;
  const std::vector<std::string> sections = known_sections();
  for (const YamlNode& section : root.children) {
    const std::string where = fmt::format("{}:{}: {}", file, section.line, section.key);
    if (std::find(sections.begin(), sections.end(), section.key) == sections.end()) {
      throw ConfigError(fmt::format("{}: unknown section; did you mean {}?", where,
                                    nearest(section.key, sections)));
    }
    if (section.kind == YamlNode::Kind::kScalar || section.kind == YamlNode::Kind::kList) {
      throw ConfigError(fmt::format("{}: a section holds keys, as in {}: {{{}: ...}}", where,
                                    section.key, first_key(section.key)));
    }
    read_section(file, section, result, keys_set);
  }
  recipe = std::move(result);
  return keys_set;
}

std::string write_recipe(const Recipe& recipe) {
  std::string text;
  std::string section;
  for (const RecipeKey& key : recipe_keys()) {
    if (key.section != section) text += key.section + ":\n";
    section = key.section;
    text += fmt::format("  {}: {}\n", key.name, yaml_value(key, key.get(recipe)));
  }
  return text;
}

std::string nearest(const std::string& word, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = std::numeric_limits<size_t>::max();
  for (const std::string& candidate : known) {
    const size_t distance = edit_distance(word, candidate);
    if (distance >= best_distance) continue;
    best = candidate;
    best_distance = distance;
  }
  return best;
}

uint64_t parse_bytes(const std::string& text) {
  if (text == "auto") return 0;
  static const std::regex kForm("([0-9]{1,20}(?:\\.[0-9]{1,20})?) ?(B|[KMGT]i?B)?");
  static const std::string kUnits = "BKMGT";
  std::smatch match;
  if (std::regex_match(text, match, kForm)) {
    const std::string unit = match[2].matched ? match[2].str() : "B";
    const double base = unit.size() == 3 ? 1024.0 : 1000.0;
    const double scale = std::pow(base, static_cast<double>(kUnits.find(unit.front())));
    // A double holds every whole number of bytes up to 8 PiB exactly, and nobody budgets more.
    const double bytes = std::floor(std::stod(match[1]) * scale);
    if (bytes >= 1 && bytes <= 0x1p53) return static_cast<uint64_t>(bytes);
  }
  throw ConfigError(
      fmt::format("{}: a number of bytes up to 8PiB, as in 24GiB, 1.5GiB, 24GB or 1024",
                  text.empty() ? "nothing" : text));
}

}  // namespace coppice
