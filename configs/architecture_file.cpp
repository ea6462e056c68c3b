#include "configs/architecture_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <limits>
#include <utility>

#include "configs/config_json.h"
#include "configs/errors.h"
#include "configs/family.h"
#include "configs/fp8_json.h"
#include "configs/rope_json.h"
#include "storage/io/file.h"  // read_file

namespace coppice {
namespace {

/// The user's own first: a description that claims a class again replaces ours.
std::vector<Family> known_families(const std::filesystem::path& extra) {
  std::vector<Family> families;
  if (!extra.empty()) families.push_back(parse_family(extra.string(), read_file(extra)));
  for (const BuiltinArchitecture& builtin : builtin_architectures()) {
    families.push_back(parse_family(builtin.name + ".yaml", builtin.yaml));
  }
  return families;
}

Family claiming_family(const ConfigJson& config, const std::filesystem::path& extra) {
  const std::vector<std::string> classes = config.word_list("architectures");
  if (classes.empty()) throw config.wrong("architectures", "must name the model's class");
  std::vector<std::string> known;
  for (Family& family : known_families(extra)) {
    for (const std::string& claim : family.claims) {
      if (claim == classes.front()) return std::move(family);
      known.push_back(claim);
    }
  }
  throw config.wrong(
      "architectures",
      fmt::format("{} is unknown; known: {}; another one with this kind of block can "
                  "be described in a file, see --architecture",
                  classes.front(), fmt::join(known, ", ")));
}

int64_t size_of(const ConfigJson& config, const Family& family, const std::string& dim) {
  const std::vector<std::string>& alternatives = family.dims.at(dim);
  for (const std::string& expression : alternatives) {
    std::optional<int64_t> size;
    try {
      size = evaluate_size(expression, [&](const std::string& key) { return config.whole(key); });
    } catch (const ConfigError& error) {
      // What config.whole() throws already says where; a quotient does not.
      if (config.has(expression)) throw;
      throw config.wrong(alternatives.front(), error.what());
    }
    if (!size) continue;
    if (*size >= 1 && *size <= std::numeric_limits<int32_t>::max()) return *size;
    throw config.wrong(config.has(expression) ? expression : alternatives.front(),
                       fmt::format("{} = {}: must be from 1 to 2^31 - 1", expression, *size));
  }
  throw config.wrong(alternatives.front(), "must be a whole number, at least 1");
}

void fill_sizes(const ConfigJson& config, const Family& family, Architecture& architecture) {
  auto size = [&](const std::string& dim) { return size_of(config, family, dim); };
  architecture.num_blocks = size("blocks");
  architecture.hidden = size("hidden");
  architecture.ffn = size("ffn");
  architecture.heads = size("heads");
  architecture.kv_heads = size("kv_heads");
  architecture.head_dim = size("head_dim");
  architecture.vocab = size("vocab");
  architecture.max_positions = size("max_positions");
  if (architecture.heads % architecture.kv_heads != 0) {
    throw config.wrong(
        family.dims.at("kv_heads").front(),
        fmt::format("must divide {} = {}", family.dims.at("heads").front(), architecture.heads));
  }
  if (family.dims.count("embedding_width") != 0) {
    architecture.embedding_width = size("embedding_width");
  }
  if (family.dims.count("token_types") != 0) architecture.num_token_types = size("token_types");
  if (!family.experts.router.empty()) {
    ExpertSpec& experts = architecture.experts;
    experts.count = size("experts");
    experts.per_token = size("experts_per_token");
    if (experts.per_token > experts.count) {
      throw config.wrong(family.dims.at("experts_per_token").front(),
                         fmt::format("must be at most the number of experts, {}", experts.count));
    }
  }
  if (family.is_rotary && architecture.head_dim % 2 != 0) {
    throw config.wrong(family.dims.at("head_dim").front(),
                       fmt::format("head_dim {} must be even, rotary positions turn pairs",
                                   architecture.head_dim));
  }
}

Activation activation_of(const ConfigJson& config, const std::string& key) {
  const std::string name = config.word(key).value_or("");
  if (name == "silu" || name == "swish") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new" || name == "gelu_pytorch_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  throw config.wrong(key, "one of silu, gelu, gelu_new, gelu_pytorch_tanh, relu");
}

double epsilon_of(const ConfigJson& config, const std::string& key_or_number) {
  double number = 0;
  const char* end = key_or_number.data() + key_or_number.size();
  const auto read = std::from_chars(key_or_number.data(), end, number);
  return read.ec == std::errc() && read.ptr == end ? number : config.positive(key_or_number);
}

bool fact_of(const ConfigJson& config, const Alternatives& alternatives) {
  for (const std::string& fact : alternatives) {
    if (fact == "true" || fact == "false") return fact == "true";
    if (const std::optional<bool> found = config.fact(fact)) return *found;
  }
  return false;
}

/// The key that states a size, where one may: the first that is tried, unless it is computed.
void fill_size_keys(const Family& family, Architecture& architecture) {
  for (const char* size : {"blocks", "ffn", "heads", "kv_heads", "head_dim"}) {
    const std::string& first = family.dims.at(size).front();
    if (first.find_first_of(" */0123456789") == std::string::npos) {
      architecture.size_keys[size] = first;
    }
  }
}

/// The key that decides, where one does.
std::string bias_key(const Alternatives& bias) {
  return bias.front() == "true" || bias.front() == "false" ? "" : bias.front();
}

void require_values(const ConfigJson& config, const Family& family) {
  for (const auto& [key, value] : family.required) {
    if (!config.has(key) || config.text(key) == value) continue;
    throw config.wrong(key, fmt::format("not computed by this version; only {} is", value));
  }
}

std::optional<int64_t> first_of(const ConfigJson& config, const Alternatives& alternatives) {
  for (const std::string& expression : alternatives) {
    const auto value = [&](const std::string& key) { return config.whole(key); };
    if (const std::optional<int64_t> size = evaluate_size(expression, value)) return size;
  }
  return std::nullopt;
}

/// By block whether it has the family's window.
std::vector<bool> windowed_blocks(const ConfigJson& config, const Family::Window& window,
                                  int64_t num_blocks) {
  std::vector<bool> is_windowed;
  const std::string& key = window.kinds;
  if (key.empty() || !config.has(key)) {
    const int64_t first = first_of(config, window.from_block).value_or(0);
    for (int64_t block = 0; block < num_blocks; ++block) is_windowed.push_back(block >= first);
    return is_windowed;
  }
  for (const std::string& kind : config.word_list(key)) {
    if (kind != "full_attention" && kind != "sliding_attention") {
      throw config.wrong(key, kind + ": one of full_attention, sliding_attention");
    }
    is_windowed.push_back(kind == "sliding_attention");
  }
  if (is_windowed.size() == static_cast<size_t>(num_blocks)) return is_windowed;
  throw config.wrong(key, fmt::format("{} entries for {} blocks: one a block is wanted",
                                      is_windowed.size(), num_blocks));
}

/// By block; empty where none has one.
std::vector<int64_t> attention_windows(const ConfigJson& config, const Family& family,
                                       int64_t num_blocks) {
  const Family::Window& window = family.window;
  if (window.size.empty()) return {};
  const std::string& key = window.size.front();
  std::optional<int64_t> size;
  if (fact_of(config, window.used) && !config.is_null(key)) size = first_of(config, window.size);
  if (size && *size < 1) throw config.wrong(key, "must be a whole number, at least 1, or null");
  std::vector<int64_t> windows;
  for (const bool is_windowed : windowed_blocks(config, window, num_blocks)) {
    if (is_windowed && !size && !window.kinds.empty() && config.has(window.kinds)) {
      throw config.wrong(window.kinds, fmt::format("sliding_attention without a {}", key));
    }
    windows.push_back(is_windowed ? size.value_or(0) : 0);
  }
  return std::any_of(windows.begin(), windows.end(), [](int64_t tokens) { return tokens > 0; })
             ? windows
             : std::vector<int64_t>();
}

std::string norm_role(const ConfigJson& config, const Family& family, const Family::Norm& norm) {
  if (norm.place == Family::Norm::Place::kOverHeads) return norm.role;
  return (fact_of(config, family.norms_before) ? "before_" : "after_") + norm.role;
}

void fill_outside(const ConfigJson& config, const Family& family, Architecture& architecture) {
  architecture.embedding = family.embedding;
  // Projections are there where there is something to project.
  if (architecture.width_of_embedding() != architecture.hidden) {
    architecture.project_in = family.project_in;
    architecture.project_out = family.project_out;
  }
  architecture.token_types = family.token_types;
  architecture.positions = family.positions;
  architecture.first_position_row = family.first_position_row;
  architecture.embedding_norm = family.embedding_norm;
  const Family::FinalNorm& final_norm = family.final_norm;
  if (fact_of(config, final_norm.where) && !fact_of(config, final_norm.unless)) {
    architecture.final_norm = final_norm.name;
  }
  architecture.tied = !family.head.empty() && fact_of(config, family.tied);
  architecture.head = architecture.tied ? family.embedding : family.head;
}

std::string of_expert(std::string text, int64_t expert) {
  static const std::string kPlaceholder = "{expert}";
  return text.replace(text.find(kPlaceholder), kPlaceholder.size(), std::to_string(expert));
}

/// Linears of the attention half as they are, of the MLP half once for every expert.
void repeat_for_experts(int64_t num_experts, std::vector<LinearSpec>& linears) {
  std::vector<LinearSpec> repeated, of_mlp;
  for (const LinearSpec& linear : linears) {
    (linear.half == Half::kMlp ? of_mlp : repeated).push_back(linear);
  }
  for (int64_t expert = 0; expert < num_experts; ++expert) {
    for (LinearSpec linear : of_mlp) {
      linear.role = role_of_expert(linear.role, expert);
      linear.name = of_expert(linear.name, expert);
      linear.input = of_expert(linear.input, expert);
      linear.expert = int(expert);
      repeated.push_back(std::move(linear));
    }
  }
  linears = std::move(repeated);
}

void fill_block(const ConfigJson& config, const Family& family, Architecture& architecture) {
  const std::map<std::string, int64_t> sizes = {
      {"blocks", architecture.num_blocks}, {"hidden", architecture.hidden},
      {"ffn", architecture.ffn},           {"heads", architecture.heads},
      {"kv_heads", architecture.kv_heads}, {"head_dim", architecture.head_dim},
      {"vocab", architecture.vocab},       {"max_positions", architecture.max_positions}};
  auto size = [&](const std::string& expression) {
    return *evaluate_size(expression, [&](const std::string& name) -> std::optional<int64_t> {
      return sizes.at(name);
    });
  };
  for (const Family::Linear& linear : family.linears) {
    architecture.linears.push_back({linear.role, linear.name, linear.input, linear.half,
                                    size(linear.shape[0]), size(linear.shape[1]),
                                    fact_of(config, linear.bias), -1, bias_key(linear.bias)});
  }
  if (!family.experts.router.empty()) {
    architecture.experts.router = family.experts.router;
    architecture.experts.sum_to_one = fact_of(config, family.experts.sum_to_one);
    architecture.experts.round_weights = family.experts.round_weights;
    repeat_for_experts(architecture.experts.count, architecture.linears);
  }
  for (const Family::Norm& norm : family.norms) {
    const bool is_over_heads = norm.place == Family::Norm::Place::kOverHeads;
    architecture.norms.push_back({norm_role(config, family, norm), norm.name, norm.half,
                                  is_over_heads ? architecture.head_dim : architecture.hidden});
  }
}

std::vector<int64_t> eos_of(const ConfigJson& config) {
  std::vector<int64_t> ids = config.whole_list("eos_token_id");
  if (std::any_of(ids.begin(), ids.end(), [](int64_t id) { return id < 0; })) {
    throw config.wrong("eos_token_id", "must be token ids, at least 0");
  }
  return ids;
}

}  // namespace

Architecture load_architecture(const std::filesystem::path& model_directory,
                               const std::filesystem::path& extra) {
  const ConfigJson config(model_directory / "config.json");
  const Family family = claiming_family(config, extra);
  const ScaleBlock scale_block = scale_block_of(config);
  require_values(config, family);

  Architecture architecture;
  architecture.scale_block = scale_block;
  architecture.family = family.name;
  architecture.block_prefix = family.block_prefix;
  architecture.units = family.units;
  fill_sizes(config, family, architecture);
  fill_size_keys(family, architecture);
  fill_block(config, family, architecture);
  fill_outside(config, family, architecture);
  architecture.norm_kind = family.norm_kind;
  architecture.norm_epsilon = epsilon_of(config, family.norm_epsilon);
  architecture.mlp_kind = family.mlp_kind;
  architecture.activation = activation_of(config, family.activation);
  architecture.mask = family.mask;
  architecture.attention_windows = attention_windows(config, family, architecture.num_blocks);
  architecture.rope.kind = RopeKind::kNone;
  if (family.is_rotary) architecture.rope = rope_of(config, architecture.max_positions);
  architecture.eos_token_ids = eos_of(config);
  return architecture;
}

}  // namespace coppice
