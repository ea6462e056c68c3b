#include "configs/rope_json.h"

#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <string>

namespace coppice {
namespace {

void refuse_partial_rotary(const ConfigJson& config) {
  if (config.number("partial_rotary_factor").value_or(1.0) == 1.0) return;
  throw config.wrong("partial_rotary_factor",
                     "not computed by this version; only 1, all of head_dim, is");
}

void refuse_ropes_by_kind(const ConfigJson& rope) {
  for (const char* kind : {"full_attention", "sliding_attention"}) {
    if (!rope.has(kind)) continue;
    throw rope.wrong(kind, "ropes that differ by kind of block are not computed by this version");
  }
}

RopeKind rope_kind(const ConfigJson& rope) {
  const std::string key = rope.has("rope_type") || !rope.has("type") ? "rope_type" : "type";
  const std::string name = rope.word(key).value_or("default");
  if (name == "default") return RopeKind::kDefault;
  if (name == "linear") return RopeKind::kLinear;
  if (name == "dynamic") return RopeKind::kDynamic;
  if (name == "llama3") return RopeKind::kLlama3;
  if (name == "yarn") return RopeKind::kYarn;
  const char* known = "one of default, linear, dynamic, llama3, yarn";
  if (name == "longrope") throw rope.wrong(key, fmt::format("comes later; {}", known));
  throw rope.wrong(key, fmt::format("unknown; {}", known));
}

/// Of the model's own config.json first, then of the rope's object, as transformers 5 does; else
/// all.
int64_t original_positions(const ConfigJson& config, const ConfigJson& scaling,
                           std::optional<int64_t> otherwise) {
  const std::string key = "original_max_position_embeddings";
  const ConfigJson& where = config.has(key) ? config : scaling;
  const std::optional<int64_t> found = where.whole(key);
  const int64_t positions = found ? *found : otherwise.value_or(0);
  if (positions < 1) throw where.wrong(key, "must be a whole number, at least 1");
  return positions;
}

void fill_llama3(const ConfigJson& config, const ConfigJson& scaling, Rope& rope) {
  rope.factor = scaling.positive("factor");
  rope.low_freq_factor = scaling.positive("low_freq_factor");
  rope.high_freq_factor = scaling.positive("high_freq_factor");
  if (rope.high_freq_factor <= rope.low_freq_factor) {
    throw scaling.wrong("high_freq_factor",
                        fmt::format("must exceed low_freq_factor {}", rope.low_freq_factor));
  }
  rope.original_max_position = original_positions(config, scaling, std::nullopt);
}

double yarn_scale(double factor, double scale) {
  return factor <= 1 ? 1.0 : 0.1 * scale * std::log(factor) + 1.0;
}

double yarn_attention_factor(const ConfigJson& scaling, double factor) {
  if (scaling.has("attention_factor")) return scaling.positive("attention_factor");
  const double scale = scaling.number("mscale").value_or(0);
  const double all = scaling.number("mscale_all_dim").value_or(0);
  if (scale == 0 || all == 0) return yarn_scale(factor, 1);
  return yarn_scale(factor, scale) / yarn_scale(factor, all);
}

void fill_yarn(const ConfigJson& config, const ConfigJson& scaling, int64_t max_positions,
               Rope& rope) {
  rope.factor = scaling.positive("factor");
  rope.attention_factor = yarn_attention_factor(scaling, rope.factor);
  if (scaling.has("beta_fast")) rope.beta_fast = scaling.positive("beta_fast");
  if (scaling.has("beta_slow")) rope.beta_slow = scaling.positive("beta_slow");
  if (rope.beta_fast < rope.beta_slow) {
    throw scaling.wrong("beta_fast",
                        fmt::format("must not be less than beta_slow {}", rope.beta_slow));
  }
  rope.truncate = scaling.fact("truncate").value_or(true);
  rope.original_max_position = original_positions(config, scaling, max_positions);
}

}  // namespace

Rope rope_of(const ConfigJson& config, int64_t max_positions) {
  refuse_partial_rotary(config);
  Rope rope;
  if (config.has("rope_theta")) rope.theta = config.positive("rope_theta");
  std::optional<ConfigJson> parameters = config.object("rope_scaling");
  if (!parameters || parameters->is_empty()) parameters = config.object("rope_parameters");
  if (!parameters) return rope;
  refuse_partial_rotary(*parameters);
  refuse_ropes_by_kind(*parameters);
  if (parameters->has("rope_theta")) rope.theta = parameters->positive("rope_theta");
  rope.kind = rope_kind(*parameters);
  switch (rope.kind) {
    case RopeKind::kNone:
    case RopeKind::kDefault:
      break;
    case RopeKind::kLinear:
      rope.factor = parameters->positive("factor");
      break;
    case RopeKind::kDynamic:
      rope.factor = parameters->positive("factor");
      rope.original_max_position = max_positions;
      break;
    case RopeKind::kLlama3:
      fill_llama3(config, *parameters, rope);
      break;
    case RopeKind::kYarn:
      fill_yarn(config, *parameters, max_positions, rope);
      break;
  }
  return rope;
}

}  // namespace coppice
