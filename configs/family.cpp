#include "configs/family.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <regex>
#include <utility>

#include "configs/errors.h"
#include "configs/plain_yaml.h"
#include "configs/recipe.h"  // nearest

namespace coppice {
namespace {

const std::vector<std::string> kDims = {"blocks",   "hidden",   "ffn",   "heads",
                                        "kv_heads", "head_dim", "vocab", "max_positions"};
const std::vector<std::string> kOptionalDims = {"embedding_width", "token_types", "experts",
                                                "experts_per_token"};
const std::string kExpert = "{expert}";

std::vector<std::string> with(std::vector<std::string> names,
                              const std::vector<std::string>& more) {
  names.insert(names.end(), more.begin(), more.end());
  return names;
}

// In the order of the forward: Architecture::linears promises it.
std::vector<std::string> roles_of(MlpKind mlp) {
  const std::vector<std::string> attention = {"q", "k", "v", "o"};
  return mlp == MlpKind::kGated ? with(attention, {"gate", "up", "down"})
                                : with(attention, {"up", "down"});
}

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
  std::string word_or_nothing(const std::string& key) const { return has(key) ? word(key) : ""; }
  Alternatives words_or(const std::string& key, const Alternatives& otherwise) const {
    return has(key) ? words(key) : otherwise;
  }
  int64_t whole(const std::string& key) const {
    const std::string text = word(key);
    if (text.size() <= 9 && std::all_of(text.begin(), text.end(), ::isdigit))
      return std::stoll(text);
    throw error(at(key), "must be a whole number");
  }
  /// For keys that name one of the forms that the stages compute.
  template <typename Form>
  Form form(const std::string& key, const std::vector<std::pair<std::string, Form>>& forms) const {
    std::vector<std::string> names;
    for (const auto& [name, form] : forms) {
      if (name == word(key)) return form;
      names.push_back(name);
    }
    throw error(at(key), fmt::format("{}: not computed by this version; one of {}", word(key),
                                     fmt::join(names, ", ")));
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
  linear.bias = map.words("bias");
  const std::vector<std::string> shape = map.words("shape");
  if (shape.size() != 2) throw map.error(map.at("shape"), "must be two sizes, [out, in]");
  for (size_t i = 0; i < 2; ++i) {
    check_shape(map, shape[i]);
    linear.shape[i] = shape[i];
  }
  return linear;
}

void read_norms(const MapReader& norm, Family& family) {
  norm.allow({"kind", "placement", "epsilon", "attention", "mlp"});
  family.norm_kind =
      norm.form<NormKind>("kind", {{"rms", NormKind::kRms}, {"layer", NormKind::kLayer}});
  const std::string placement = norm.words("placement").front();
  family.norms_before = placement == "pre"    ? Alternatives{"true"}
                        : placement == "post" ? Alternatives{"false"}
                                              : norm.words("placement");
  family.norm_epsilon = norm.word("epsilon");
  family.norms = {{"attention", norm.word("attention"), Half::kAttention},
                  {"mlp", norm.word("mlp"), Half::kMlp}};
}

void read_attention(const MapReader& attention, Family& family) {
  attention.allow({"mask", "position", "window", "q_norm", "k_norm"});
  family.mask = attention.form<AttentionMask>(
      "mask",
      {{"causal", AttentionMask::kCausal}, {"bidirectional", AttentionMask::kBidirectional}});
  family.is_rotary = attention.form<bool>("position", {{"rotary", true}, {"learned", false}});
  for (const char* role : {"q_norm", "k_norm"}) {
    if (!attention.has(role)) continue;
    family.norms.push_back(
        {role, attention.word(role), Half::kAttention, Family::Norm::Place::kOverHeads});
  }
  if (!attention.has("window")) return;
  const MapReader window = attention.map("window");
  window.allow({"size", "used", "from_block", "kinds"});
  family.window = {window.words("size"), window.words_or("used", {"true"}),
                   window.words_or("from_block", {"0"}), window.word_or_nothing("kinds")};
  if (family.mask != AttentionMask::kCausal) {
    throw attention.error(attention.at("window"),
                          "not computed by this version without a causal "
                          "mask");
  }
}

void read_experts(const MapReader& experts, Family& family) {
  experts.allow({"router", "sum_to_one", "weights"});
  family.experts = {experts.word("router"), experts.words("sum_to_one"),
                    experts.form<bool>("weights", {{"float32", false}, {"rounded", true}})};
}

/// Where there are experts, the linears of the MLP half are theirs, and no others.
void check_places_of_experts(const MapReader& map, const Family& family,
                             const Family::Linear& linear) {
  const bool is_expert = !family.experts.router.empty() && linear.half == Half::kMlp;
  for (const auto& [key, text] : {std::pair("name", linear.name), {"input", linear.input}}) {
    if ((text.find(kExpert) != std::string::npos) == is_expert) continue;
    throw map.error(map.at(key),
                    fmt::format("{}: {}", text,
                                is_expert ? "must hold {expert}, where the expert's number goes"
                                          : "{expert}, but this is no linear of an expert"));
  }
}

UnitSpec read_unit(const MapReader& map, const std::vector<std::string>& known) {
  map.allow({"producers", "shared", "consumer", "divides_hidden"});
  UnitSpec unit{map.words("producers"), {}, map.word("consumer")};
  if (map.has("shared")) unit.shared = map.words("shared");
  if (map.has("divides_hidden")) {
    unit.divides_hidden = map.form<bool>("divides_hidden", {{"true", true}, {"false", false}});
  }
  std::vector<std::string> roles = unit.producers;
  roles.insert(roles.end(), unit.shared.begin(), unit.shared.end());
  roles.push_back(unit.consumer);
  for (const std::string& role : roles) {
    if (std::find(known.begin(), known.end(), role) != known.end()) continue;
    throw map.error(map.at("consumer"), fmt::format("{}: no linear of the block; one of {}", role,
                                                    fmt::join(known, ", ")));
  }
  return unit;
}

void read_block(const MapReader& block, Family& family) {
  block.allow({"prefix", "norm", "attention", "mlp", "experts", "linears", "units"});
  family.block_prefix = block.word("prefix");
  if (family.block_prefix.find("{block}") == std::string::npos) {
    throw block.error(block.at("prefix"),
                      family.block_prefix + ": must hold {block}, where the block's number goes");
  }
  read_norms(block.map("norm"), family);
  read_attention(block.map("attention"), family);
  const MapReader mlp = block.map("mlp");
  mlp.allow({"kind", "activation"});
  family.mlp_kind =
      mlp.form<MlpKind>("kind", {{"gated", MlpKind::kGated}, {"plain", MlpKind::kPlain}});
  family.activation = mlp.word("activation");
  if (block.has("experts")) read_experts(block.map("experts"), family);

  const MapReader linears = block.map("linears");
  const std::vector<std::string> roles = roles_of(family.mlp_kind);
  linears.allow(roles);
  for (const std::string& role : roles) linears.at(role);  // each is there
  if (linears.keys() != roles) {
    throw block.error(block.at("linears"),
                      fmt::format("must be in the order {}", fmt::join(roles, ", ")));
  }
  for (const std::string& role : roles) {
    family.linears.push_back(read_linear(role, linears.map(role)));
    check_places_of_experts(linears.map(role), family, family.linears.back());
  }
  const MapReader units = block.map("units");
  units.allow({"ffn", "heads"});
  for (const char* unit : {"ffn", "heads"}) {
    family.units[unit] = read_unit(units.map(unit), roles);
  }
}

void read_outside(const MapReader& outside, Family& family) {
  outside.allow({"embedding", "project_in", "token_types", "positions", "embedding_norm",
                 "final_norm", "project_out", "head", "tied"});
  family.embedding = outside.word("embedding");
  family.project_in = outside.word_or_nothing("project_in");
  family.token_types = outside.word_or_nothing("token_types");
  family.embedding_norm = outside.word_or_nothing("embedding_norm");
  family.project_out = outside.word_or_nothing("project_out");
  family.head = outside.word_or_nothing("head");
  family.tied = outside.words_or("tied", {"false"});
  if (outside.has("positions")) {
    const MapReader positions = outside.map("positions");
    positions.allow({"name", "first_row"});
    family.positions = positions.word("name");
    family.first_position_row = positions.whole("first_row");
  }
  if (outside.has("final_norm")) {
    const MapReader norm = outside.map("final_norm");
    norm.allow({"name", "where", "unless"});
    family.final_norm = {norm.word("name"), norm.words_or("where", {"true"}),
                         norm.words_or("unless", {"false"})};
  }
}

}  // namespace

Family parse_family(const std::string& file, const std::string& yaml) {
  const YamlNode root = parse_yaml(file, yaml);
  const MapReader top(file, "", root);
  top.allow({"name", "claims", "requires", "dims", "outside", "block"});
  Family family;
  family.name = top.word("name");
  family.claims = top.words("claims");

  if (top.has("requires")) {
    const MapReader required = top.map("requires");
    for (const std::string& key : required.keys()) family.required[key] = required.word(key);
  }

  const MapReader dims = top.map("dims");
  dims.allow(with(kDims, kOptionalDims));
  for (const std::string& name : kDims) family.dims[name] = dims.words(name);
  for (const std::string& name : kOptionalDims) {
    if (dims.has(name)) family.dims[name] = dims.words(name);
  }
  const MapReader outside = top.map("outside");
  if (outside.has("token_types")) dims.at("token_types");
  if (dims.has("embedding_width")) {
    for (const char* projection : {"project_in", "project_out"}) outside.at(projection);
  }

  read_outside(outside, family);
  read_block(top.map("block"), family);
  if (!family.is_rotary) outside.at("positions");  // learned ones
  if (!family.experts.router.empty()) {
    for (const char* size : {"experts", "experts_per_token"}) dims.at(size);
  }
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
    const std::string name = (*term)[2];
    const bool is_number = name.size() <= 9 && std::all_of(name.begin(), name.end(), ::isdigit);
    const std::optional<int64_t> size = is_number ? std::stoll(name) : value(name);
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
