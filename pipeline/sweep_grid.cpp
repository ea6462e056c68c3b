#include "pipeline/sweep_grid.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <set>

#include "configs/errors.h"

namespace coppice {
namespace {

struct VariedKey {
  const RecipeKey* key;
  std::vector<std::string> values;
};

const RecipeKey& key_of(const std::string& text, const std::string& name) {
  std::vector<std::string> known;
  known.reserve(recipe_keys().size());
  for (const RecipeKey& key : recipe_keys()) {
    if (name == key.path() || "--" + name == key.flag() || name == key.flag()) return key;
    known.push_back(key.flag().substr(2));
  }
  throw ConfigError(fmt::format("--vary {}: {}: unknown key; did you mean {}?", text, name,
                                nearest(name, known)));
}

VariedKey parse_varied(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || equals + 1 == text.size()) {
    throw ConfigError(
        fmt::format("--vary {}: KEY=VALUE,VALUE is wanted, as in lr=1e-4,1e-3", text));
  }
  const RecipeKey& key = key_of(text, text.substr(0, equals));
  if (key.section != "prune" && key.section != "reconstruct") {
    throw ConfigError(fmt::format(
        "--vary {}: all recipes of a sweep see the same windows on the same machine: keys of prune "
        "and reconstruct may vary",
        text));
  }
  if (key.is_list) {
    throw ConfigError(fmt::format(
        "--vary {}: {} is a list itself; give recipes that differ in it by --recipe, several times",
        text, key.path()));
  }
  VariedKey varied{&key, {}};
  for (size_t begin = equals + 1; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string value = text.substr(begin, end - begin);
    if (std::count(varied.values.begin(), varied.values.end(), value) > 0) {
      throw ConfigError(fmt::format("--vary {}: {} twice", text, value));
    }
    varied.values.push_back(value);
    begin = end + 1;
  }
  return varied;
}

/// A directory's name: what could trouble a path or a shell becomes a dash.
std::string name_of(const std::string& base, const std::vector<std::string>& values) {
  std::string name = base;
  for (const std::string& value : values) name += (name.empty() ? "" : "_") + value;
  for (char& letter : name) {
    const bool is_plain = std::isalnum(static_cast<unsigned char>(letter)) != 0 || letter == '_' ||
                          letter == '.' || letter == '+';
    if (!is_plain) letter = '-';
  }
  return name;
}

/// Every choice of one value of each key.
std::vector<std::vector<std::string>> combinations(const std::vector<VariedKey>& keys) {
  std::vector<std::vector<std::string>> all = {{}};
  for (const VariedKey& key : keys) {
    std::vector<std::vector<std::string>> longer;
    for (const auto& chosen : all) {
      for (const std::string& value : key.values) {
        longer.push_back(chosen);
        longer.back().push_back(value);
      }
    }
    all = std::move(longer);
  }
  return all;
}

NamedRecipe recipe_of(const BaseRecipe& base, const std::vector<VariedKey>& keys,
                      const std::vector<std::string>& values) {
  NamedRecipe named{name_of(base.name, values), base.recipe, values};
  if (named.name.empty()) named.name = "recipe";  // a sweep of one
  if (!base.name.empty()) named.varied.insert(named.varied.begin(), base.name);
  std::vector<std::string> set = base.keys_set;
  for (size_t i = 0; i < keys.size(); ++i) {
    set_recipe_key(named.recipe, keys[i].key->path(), values[i]);
    set.push_back(keys[i].key->path());
  }
  try {
    check_recipe(named.recipe, set, JudgedBy::kSweep);
  } catch (const ConfigError& error) {
    throw ConfigError(fmt::format("sweep: {}: {}", named.name, error.what()));
  }
  return named;
}

}  // namespace

SweepGrid sweep_grid(const std::vector<BaseRecipe>& bases, const std::vector<std::string>& vary) {
  std::vector<VariedKey> keys;
  SweepGrid grid;
  if (bases.size() > 1) grid.keys.emplace_back("recipe");
  for (const std::string& text : vary) {
    keys.push_back(parse_varied(text));
    const std::string path = keys.back().key->path();
    if (std::count(grid.keys.begin(), grid.keys.end(), path) > 0) {
      throw ConfigError(fmt::format("--vary {}: {} is varied already", text, path));
    }
    grid.keys.push_back(path);
  }
  std::set<std::string> names;
  for (const BaseRecipe& base : bases) {
    for (const auto& values : combinations(keys)) {
      NamedRecipe named = recipe_of(base, keys, values);
      if (!names.insert(named.name).second) {
        throw ConfigError(fmt::format(
            "sweep: two recipes are called {}; give their files, or the values, other names",
            named.name));
      }
      grid.recipes.push_back(std::move(named));
    }
  }
  check_sweep(grid.recipes);
  return grid;
}

}  // namespace coppice
