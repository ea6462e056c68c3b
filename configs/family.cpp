#include "configs/family.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <regex>
#include <utility>

#include "configs/errors.h"
#include "configs/plain_yaml.h"
#include "configs/recipe.h"  // nearest

namespace coppice {
namespace {

// What a block of the one shape that the stages compute consists of.
const std::vector<std::string> kDims = {"blocks",   "hidden",   "ffn",   "heads",
                                        "kv_heads", "head_dim", "vocab", "max_positions"};
const std::vector<std::string> kRoles = {"q", "k", "v", "o", "gate", "up", "down"};

/// A map of the description: its keys are a known set, and each is asked for by name.
class MapReader {
 public:
  MapReader(std::string file, std::string path, const YamlNode& node)
      : file_(std::move(file)), path_(std::move(path)), node_(node) {
    if (node.kind != YamlNode::Kind::kMap) throw error(node, "must be a map");
  }

  const MapReader& allow(const std::vector<std::string>& keys) const {
    for (const YamlNode& child : node_.children) {
      if (std::find(keys.begin(), keys.end(), child.key) != keys.end()) continue;
      throw error(child, fmt::format("unknown key; did you mean {}?", nearest(child.key, keys)));
    }
    return *this;
  }
  bool has(const std::string& key) const { return find(key) != nullptr; }
  const YamlNode& at(const std::string& key) const {
    if (const YamlNode* child = find(key)) return *child;
    throw error(node_, fmt::format("the key {} is absent", key));
  }
  std::string word(const std::string& key) const {
    const YamlNode& child = at(key);
    if (child.kind == YamlNode::Kind::kScalar && !child.text.empty()) return child.text;
    throw error(child, "must be one word");
  }
  /// A list of words; one word is a list of one.
  std::vector<std::string> words(const std::string& key) const {
    const YamlNode& child = at(key);
    if (child.kind == YamlNode::Kind::kScalar) return {word(key)};
    std::vector<std::string> list;
    for (const YamlNode& item : child.children) {
      if (item.kind != YamlNode::Kind::kScalar) throw error(child, "must be a list of words");
      list.push_back(item.text);
    }
    if (list.empty()) throw error(child, "must be a list of words");
    return list;
  }
  /// For keys of which the stages compute one form.
  void expect(const std::string& key, const std::string& form) const {
    if (word(key) == form) return;
    throw error(at(key), fmt::format("{}: not computed by this version; {} is", word(key), form));
  }
  MapReader map(const std::string& key) const {
    return MapReader(file_, path_ + key + ".", at(key));
  }
  std::vector<std::string> keys() const {
    std::vector<std::string> names;
    for (const YamlNode& child : node_.children) names.push_back(child.key);
    return names;
  }

  /// `node` is the map itself or one of its values.
  ConfigError error(const YamlNode& node, const std::string& what) const {
    std::string path = path_ + (&node == &node_ ? "" : node.key);
    if (!path.empty() && path.back() == '.') path.pop_back();
    return ConfigError(path.empty() ? fmt::format("{}:{}: {}", file_, node.line, what)
                                    : fmt::format("{}:{}: {}: {}", file_, node.line, path, what));
  }

 private:
  const YamlNode* find(const std::string& key) const {
    for (const YamlNode& child : node_.children) {
      if (child.key == key) return &child;
    }
    return nullptr;
  }

  std::string file_;
  std::string path_;  // of the map within the file, with a dot at its end
  const YamlNode& node_;
};

Half half_named(const MapReader& map) {
  const std::string half = map.word("half");
  if (half == "attention") return Half::kAttention;
  if (half == "mlp") return Half::kMlp;
  throw map.error(map.at("half"), fmt::format("{}: one of attention, mlp", half));
}

// Wrong names are found here, without a checkpoint: the value 1 stands for every size.
void check_shape(const MapReader& map, const std::string& expression) {
  try {
    evaluate_size(expression, [&](const std::string& name) -> std::optional<int64_t> {
      if (std::find(kDims.begin(), kDims.end(), name) != kDims.end()) return 1;
      throw ConfigError(fmt::format("{}: unknown size; one of {}", name, fmt::join(kDims, ", ")));
    });
  } catch (const ConfigError& error) {
    throw map.error(map.at("shape"), error.what());
  }
}

Family::Linear read_linear(const std::string& role, const MapReader& map) {
  map.allow({"name", "half", "input", "shape", "bias"});
  Family::Linear linear;
  linear.role = role;
  linear.name = map.word("name");
  linear.half = half_named(map);
  linear.input = map.word("input");
  linear.bias = map.word("bias");
  const std::vector<std::string> shape = map.words("shape");
  if (shape.size() != 2) throw map.error(map.at("shape"), "must be two sizes, [out, in]");
  for (size_t i = 0; i < 2; ++i) {
    check_shape(map, shape[i]);
    linear.shape[i] = shape[i];
  }
  return linear;
}

std::vector<Family::Norm> read_norms(const MapReader& norm) {
  norm.allow({"kind", "placement", "epsilon", "before_attention", "before_mlp"});
  norm.expect("kind", "rms");
  norm.expect("placement", "pre");
  return {{"before_attention", norm.word("before_attention"), Half::kAttention},
          {"before_mlp", norm.word("before_mlp"), Half::kMlp}};
}

UnitSpec read_unit(const MapReader& map) {
  map.allow({"producers", "shared", "consumer"});
  UnitSpec unit{map.words("producers"), {}, map.word("consumer")};
  if (map.has("shared")) unit.shared = map.words("shared");
  std::vector<std::string> roles = unit.producers;
  roles.insert(roles.end(), unit.shared.begin(), unit.shared.end());
  roles.push_back(unit.consumer);
  for (const std::string& role : roles) {
    if (std::find(kRoles.begin(), kRoles.end(), role) != kRoles.end()) continue;
    throw map.error(map.at("consumer"), fmt::format("{}: no linear of the block; one of {}", role,
                                                    fmt::join(kRoles, ", ")));
  }
  return unit;
}

void read_block(const MapReader& block, Family& family) {
  block.allow({"prefix", "norm", "attention", "mlp", "linears", "units"});
  family.block_prefix = block.word("prefix");
  if (family.block_prefix.find("{block}") == std::string::npos) {
    throw block.error(block.at("prefix"),
                      family.block_prefix + ": must hold {block}, where the block's number goes");
  }
  family.norms = read_norms(block.map("norm"));
  family.norm_epsilon = block.map("norm").word("epsilon");
  block.map("attention").allow({"mask", "position"}).expect("mask", "causal");
  block.map("attention").expect("position", "rotary");
  block.map("mlp").allow({"kind", "activation"}).expect("kind", "gated");
  family.activation = block.map("mlp").word("activation");

  const MapReader linears = block.map("linears");
  linears.allow(kRoles);
  for (const std::string& role : kRoles) linears.at(role);  // each is there
  for (const std::string& role : linears.keys()) {
    family.linears.push_back(read_linear(role, linears.map(role)));
  }
  const MapReader units = block.map("units");
  for (const std::string& unit : units.keys()) {
    family.units[unit] = read_unit(units.map(unit));
  }
}

}  // namespace

Family parse_family(const std::string& file, const std::string& yaml) {
  const YamlNode root = parse_yaml(file, yaml);
  const MapReader top(file, "", root);
  top.allow({"name", "claims", "dims", "outside", "block"});
  Family family;
  family.name = top.word("name");
  family.claims = top.words("claims");

  const MapReader dims = top.map("dims");
  dims.allow(kDims);
  for (const std::string& name : kDims) family.dims[name] = dims.words(name);

  const MapReader outside = top.map("outside");
  outside.allow({"embedding", "final_norm", "head", "tied"});
  family.embedding = outside.word("embedding");
  family.final_norm = outside.word("final_norm");
  family.head = outside.word("head");
  family.tied = outside.word("tied");

  read_block(top.map("block"), family);
  return family;
}

std::optional<int64_t> evaluate_size(
    const std::string& expression,
    const std::function<std::optional<int64_t>(const std::string& name)>& value) {
  static const std::regex kForm(R"(\s*\w+\s*([*/]\s*\w+\s*)*)");
  static const std::regex kTerm(R"(([*/]?)\s*(\w+))");
  if (!std::regex_match(expression, kForm)) {
    throw ConfigError(expression + ": names joined by * or /, as in hidden / heads");
  }
  int64_t result = 1;
  for (std::sregex_iterator term(expression.begin(), expression.end(), kTerm), end; term != end;
       ++term) {
    const std::optional<int64_t> size = value((*term)[2]);
    if (!size) return std::nullopt;
    if ((*term)[1] != "/") {
      if (!__builtin_mul_overflow(result, *size, &result)) continue;
      throw ConfigError(fmt::format("{}: exceeds 2^63 - 1", expression));
    }
    if (*size == 0 || result % *size != 0) {
      throw ConfigError(fmt::format("{}: {} / {} is no whole number", expression, result, *size));
    }
    result /= *size;
  }
  return result;
}

}  // namespace coppice
