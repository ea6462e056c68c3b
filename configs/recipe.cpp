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

const RecipeKey* find_key(const std::string& path_or_flag) {
  for (const RecipeKey& key : recipe_keys()) {
    if (key.path() == path_or_flag || key.flag() == path_or_flag) return &key;
  }
  return nullptr;
}

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
    const RecipeKey* key = find_key(path);
    if (key == nullptr) {
      throw ConfigError(fmt::format("{}: unknown key; did you mean {}?", where,
                                    nearest_path(section.key, node.key)));
    }
    set_at(where, *key, recipe, text_of(where, *key, node));
    keys_set.push_back(path);
  }
}

enum class Stated { kByUser, kByNobody };

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

void check_pattern(PruneOptions& prune, Stated sparsity) {
  if (prune.pattern.is_unstructured()) return;
  const std::string pattern =
      fmt::format("{}:{}", prune.pattern.num_kept, prune.pattern.group_size);
  const double implied =
      1.0 - static_cast<double>(prune.pattern.num_kept) / prune.pattern.group_size;
  // 0.667 is a fair way to state 1:3.
  if (sparsity == Stated::kByUser && std::abs(prune.sparsity - implied) > 1e-3) {
    throw ConfigError(
        fmt::format("prune.sparsity: {}: sparsity_type {} makes it {}; leave it out or state that",
                    prune.sparsity, pattern, implied));
  }
  if (!prune.block_sparsities.empty() || !prune.sparsity_map.empty()) {
    throw ConfigError(fmt::format(
        "prune.{}: sparsity_type {} makes every sparsity {}; leave it out",
        prune.sparsity_map.empty() ? "block_sparsities" : "sparsity_map", pattern, implied));
  }
  if (prune.comparison != Comparison::kAuto) {
    throw ConfigError(
        fmt::format("prune.comparison: sparsity_type {} compares within {} inputs of a row; leave "
                    "it out",
                    pattern, prune.pattern.group_size));
  }
  prune.sparsity = implied;
}

/// Masks that are given decide alone. They make the method `given` where none was stated.
void check_masks(PruneOptions& prune, Stated method) {
  if (prune.masks.empty()) {
    if (prune.method != PruneMethod::kGiven) return;
    throw ConfigError("prune.method: given: by which masks? prune.masks names their directory");
  }
  if (method == Stated::kByNobody) prune.method = PruneMethod::kGiven;
  if (prune.method != PruneMethod::kGiven) {
    throw ConfigError(
        "prune.masks: decide instead of scores; leave out prune.method, or the masks");
  }
  const PruneOptions defaults;  // what a written recipe states of them
  const bool is_told_otherwise = prune.sparsity != defaults.sparsity ||
                                 !prune.pattern.is_unstructured() ||
                                 !prune.block_sparsities.empty() || !prune.sparsity_map.empty();
  if (!is_told_otherwise) return;
  throw ConfigError(
      "prune.masks: decide what is pruned; leave out sparsity, sparsity_type, block_sparsities and "
      "sparsity_map");
}

void check_comparison(const PruneOptions& prune) {
  if (prune.method == PruneMethod::kWanda && prune.comparison == Comparison::kMatrix) {
    throw ConfigError(
        "prune.comparison: matrix: wanda compares within rows; leave it out, or prune by "
        "magnitude or ria");
  }
  if (prune.method == PruneMethod::kSparseGpt && prune.comparison != Comparison::kAuto) {
    throw ConfigError(
        "prune.comparison: sparsegpt compares within the blocks of columns it sweeps; leave it "
        "out");
  }
}

void check_allocation(const Recipe& recipe) {
  const PruneOptions& prune = recipe.prune;
  if (prune.allocation == Allocation::kUniform) return;
  const auto refuse = [](const std::string& why) {
    throw ConfigError("prune.allocation: owl: " + why);
  };
  if (!prune.block_sparsities.empty()) refuse("decides the blocks' sparsities; leave them out");
  if (!prune.masks.empty()) refuse("masks that are given decide what is pruned; leave one out");
  if (!prune.pattern.is_unstructured()) {
    refuse(fmt::format("sparsity_type {}:{} makes every sparsity the same; leave one out",
                       prune.pattern.num_kept, prune.pattern.group_size));
  }
  if (recipe.reconstruct.propagation != Propagation::kDense) {
    refuse("measures the dense model before the run; it wants reconstruct.propagation dense");
  }
  const double most = 2 * prune.owl_lambda;
  if (prune.sparsity - most < 0 || prune.sparsity + most >= 1) {
    refuse(
        fmt::format("a block may get {} more or less than the sparsity of {}, which is no "
                    "fraction any more; choose a smaller prune.owl_lambda",
                    most, prune.sparsity));
  }
}

void check_rate(const ReconstructOptions& reconstruct) {
  if (reconstruct.lr > 0) return;
  if (reconstruct.window.kind == WindowKind::kNone || !trains_adamw(reconstruct)) {
    throw ConfigError("reconstruct.lr: auto: nothing is trained that a rate could be found for");
  }
  if (reconstruct.propagation != Propagation::kDense) {
    throw ConfigError(
        "reconstruct.lr: auto: rates are tried on dense activations; it wants "
        "reconstruct.propagation dense, so that the run meets the same");
  }
}

}  // namespace

std::string RecipeKey::flag() const {
  if (!flag_override.empty()) return flag_override;
  std::string flag = "--" + name;
  std::replace(flag.begin(), flag.end(), '_', '-');
  return flag;
}

std::string RecipeKey::path() const { return section + "." + name; }

void set_recipe_key(Recipe& recipe, const std::string& key, const std::string& text) {
  const RecipeKey* known = find_key(key);
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

void check_recipe(Recipe& recipe, const std::vector<std::string>& keys_set_by_user) {
  const auto stated = [&](const std::string& path) {
    const bool by_user =
        std::any_of(keys_set_by_user.begin(), keys_set_by_user.end(), [&](const std::string& name) {
          const RecipeKey* key = find_key(name);
          return key != nullptr && key->path() == path;
        });
    return by_user ? Stated::kByUser : Stated::kByNobody;
  };
  check_masks(recipe.prune, stated("prune.method"));
  check_pattern(recipe.prune, stated("prune.sparsity"));
  check_comparison(recipe.prune);
  check_allocation(recipe);
  check_rate(recipe.reconstruct);
  if (recipe.reconstruct.window.kind != WindowKind::kNone && recipe.calibration.nsamples < 2) {
    throw ConfigError(
        fmt::format("calibration.nsamples: {}: at least 2 when reconstructing, one to train on and "
                    "one to judge by; or set reconstruct.window to none",
                    recipe.calibration.nsamples));
  }
  if (recipe.prune.statistics == StatisticsOf::kPropagated &&
      recipe.reconstruct.propagation == Propagation::kDense) {
    throw ConfigError(
        "prune.statistics: propagated: the pruned model's activations flow on under "
        "reconstruct.propagation sparse or mixed only");
  }
  recipe.prune.seed = recipe.reconstruct.seed = recipe.calibration.seed;
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
