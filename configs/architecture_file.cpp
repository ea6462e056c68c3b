#include "configs/architecture_file.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "configs/config_json.h"
#include "configs/errors.h"
#include "configs/family.h"
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

void refuse_quantized(const ConfigJson& config) {
  if (!config.has("quantization_config")) return;
  throw config.wrong("quantization_config",
                     "quantised weights cannot be pruned; load the model with transformers, "
                     "dequantise it, and save it in bf16");
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
  if (architecture.head_dim % 2 != 0) {
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

double positive(const ConfigJson& config, const std::string& key) {
  const std::optional<double> number = config.number(key);
  if (number && *number > 0) return *number;
  throw config.wrong(key, "must be a number greater than 0");
}

void refuse_partial_rotary(const ConfigJson& config) {
  if (config.number("partial_rotary_factor").value_or(1.0) == 1.0) return;
  throw config.wrong("partial_rotary_factor",
                     "not computed by this version; only 1, all of head_dim, is");
}

RopeKind rope_kind(const ConfigJson& rope) {
  const std::string key = rope.has("rope_type") || !rope.has("type") ? "rope_type" : "type";
  const std::string name = rope.word(key).value_or("default");
  if (name == "default") return RopeKind::kDefault;
  if (name == "llama3") return RopeKind::kLlama3;
  for (const char* later : {"linear", "dynamic", "yarn", "longrope"}) {
    if (name == later) throw rope.wrong(key, "comes later; this version has default, llama3");
  }
  throw rope.wrong(key, "unknown; one of default, llama3");
}

void fill_llama3(const ConfigJson& scaling, Rope& rope) {
  rope.factor = positive(scaling, "factor");
  rope.low_freq_factor = positive(scaling, "low_freq_factor");
  rope.high_freq_factor = positive(scaling, "high_freq_factor");
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    throw scaling.wrong("high_freq_factor",
                        fmt::format("must exceed low_freq_factor {}", rope.low_freq_factor));
  }
  const std::string key = "original_max_position_embeddings";
  rope.original_max_position = scaling.whole(key).value_or(0);
  if (rope.original_max_position < 1) {
    throw scaling.wrong(key, "must be a whole number, at least 1");
  }
}

// Where both spellings are there, transformers 5 lets rope_scaling win; so do we.
Rope rope_of(const ConfigJson& config) {
  refuse_partial_rotary(config);
  Rope rope;
  if (config.has("rope_theta")) rope.theta = positive(config, "rope_theta");
  std::optional<ConfigJson> parameters = config.object("rope_scaling");
  if (!parameters) parameters = config.object("rope_parameters");
  if (!parameters) return rope;
  refuse_partial_rotary(*parameters);
  if (parameters->has("rope_theta")) rope.theta = positive(*parameters, "rope_theta");
  rope.kind = rope_kind(*parameters);
  if (rope.kind == RopeKind::kLlama3) fill_llama3(*parameters, rope);
  return rope;
}

bool fact_or_key(const ConfigJson& config, const std::string& fact) {
  if (fact == "true" || fact == "false") return fact == "true";
  return config.fact(fact).value_or(false);
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
                                    fact_or_key(config, linear.bias)});
  }
  for (const Family::Norm& norm : family.norms) {
    architecture.norms.push_back({norm.role, norm.name, norm.half, architecture.hidden});
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
  refuse_quantized(config);

  Architecture architecture;
  architecture.family = family.name;
  architecture.block_prefix = family.block_prefix;
  architecture.units = family.units;
  fill_sizes(config, family, architecture);
  fill_block(config, family, architecture);
  architecture.norm_epsilon = positive(config, family.norm_epsilon);
  architecture.activation = activation_of(config, family.activation);
  architecture.rope = rope_of(config);
  architecture.embedding = family.embedding;
  architecture.final_norm = family.final_norm;
  architecture.tied = fact_or_key(config, family.tied);
  architecture.head = architecture.tied ? family.embedding : family.head;
  architecture.eos_token_ids = eos_of(config);
  return architecture;
}

}  // namespace coppice
