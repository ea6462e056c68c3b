#include "configs/architecture_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "configs/errors.h"
#include "storage/errors.h"
#include "tests/support/odd_config.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::nlohmann::json;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;
using ::testing::ThrowsMessage;

json with(const json& changes) {
  json config = testing::odd_config();
  config.update(changes);
  return config;
}

json without(const std::string& key) {
  json config = testing::odd_config();
  config.erase(key);
  return config;
}

Architecture loaded(const json& config, const std::filesystem::path& extra = {}) {
  const testing::TempDir directory;
  std::ofstream(directory / "config.json") << config;
  return load_architecture(directory.path(), extra);
}

auto loading(const json& config) {
  return [config] { loaded(config); };
}

TEST(ArchitectureFile, SizesComeFromConfigJson) {
  const Architecture architecture = loaded(testing::odd_config());
  EXPECT_EQ(architecture.family, "llama");
  EXPECT_EQ(architecture.num_blocks, 2);
  EXPECT_EQ(architecture.hidden, 24);
  EXPECT_EQ(architecture.ffn, 37);
  EXPECT_EQ(architecture.heads, 6);
  EXPECT_EQ(architecture.kv_heads, 2);
  EXPECT_EQ(architecture.head_dim, 4);
  EXPECT_EQ(architecture.vocab, 61);
  EXPECT_EQ(architecture.max_positions, 64);
  EXPECT_EQ(architecture.norm_epsilon, 3e-6);
  EXPECT_EQ(architecture.activation, Activation::kSilu);
  EXPECT_EQ(architecture.rope.kind, RopeKind::kDefault);
  EXPECT_EQ(architecture.rope.theta, 500000.0);
  EXPECT_THAT(architecture.eos_token_ids, ElementsAre(2));
  EXPECT_FALSE(architecture.tied);
  EXPECT_EQ(architecture.head, "lm_head.weight");
}

TEST(ArchitectureFile, LinearsHaveRolesInputsAndShapes) {
  const Architecture architecture = loaded(testing::odd_config());
  std::vector<std::string> rows;
  for (const LinearSpec& linear : architecture.linears) {
    rows.push_back(linear.role + " " + linear.name + " " + linear.input + " " +
                   std::to_string(linear.out) + "x" + std::to_string(linear.in) +
                   (linear.half == Half::kMlp ? " mlp" : " attention") +
                   (linear.has_bias ? " biased" : ""));
  }
  EXPECT_THAT(rows, ElementsAre("q self_attn.q_proj attention_input 24x24 attention",
                                "k self_attn.k_proj attention_input 8x24 attention",
                                "v self_attn.v_proj attention_input 8x24 attention",
                                "o self_attn.o_proj attention_output 24x24 attention",
                                "gate mlp.gate_proj mlp_input 37x24 mlp",
                                "up mlp.up_proj mlp_input 37x24 mlp",
                                "down mlp.down_proj mlp_hidden 24x37 mlp"));
}

TEST(ArchitectureFile, NormsAndUnitsAreFilledIn) {
  const Architecture architecture = loaded(testing::odd_config());
  ASSERT_THAT(architecture.norms, SizeIs(2));
  EXPECT_EQ(architecture.norms[0].role, "before_attention");
  EXPECT_EQ(architecture.norms[0].name, "input_layernorm");
  EXPECT_EQ(architecture.norms[0].half, Half::kAttention);
  EXPECT_EQ(architecture.norms[0].size, 24);
  EXPECT_EQ(architecture.norms[1].role, "before_mlp");
  EXPECT_EQ(architecture.norms[1].half, Half::kMlp);
  EXPECT_THAT(architecture.units.at("ffn").producers, ElementsAre("gate", "up"));
  EXPECT_EQ(architecture.units.at("ffn").consumer, "down");
}

TEST(ArchitectureFile, ExplicitHeadDimChangesTheShapes) {
  const Architecture architecture = loaded(with({{"head_dim", 10}}));
  EXPECT_EQ(architecture.head_dim, 10);
  EXPECT_EQ(architecture.linear("q").out, 60);
  EXPECT_EQ(architecture.linear("k").out, 20);
  EXPECT_EQ(architecture.linear("o").in, 60);
  EXPECT_EQ(architecture.linear("o").out, 24);
}

TEST(ArchitectureFile, AbsentOrNullKeysFallBack) {
  const Architecture absent = loaded(without("num_key_value_heads"));
  EXPECT_EQ(absent.kv_heads, 6);
  const Architecture null = loaded(with({{"num_key_value_heads", nullptr}, {"head_dim", nullptr}}));
  EXPECT_EQ(null.kv_heads, 6);
  EXPECT_EQ(null.head_dim, 4);
}

TEST(ArchitectureFile, BiasesAreWhereConfigJsonSaysSo) {
  const Architecture attention = loaded(with({{"attention_bias", true}}));
  EXPECT_TRUE(attention.linear("q").has_bias);
  EXPECT_TRUE(attention.linear("o").has_bias);
  EXPECT_FALSE(attention.linear("up").has_bias);
  const Architecture mlp = loaded(with({{"mlp_bias", true}, {"attention_bias", false}}));
  EXPECT_FALSE(mlp.linear("q").has_bias);
  EXPECT_TRUE(mlp.linear("gate").has_bias);
  EXPECT_TRUE(mlp.linear("down").has_bias);
}

TEST(ArchitectureFile, TiedHeadIsTheEmbedding) {
  const Architecture architecture = loaded(with({{"tie_word_embeddings", true}}));
  EXPECT_TRUE(architecture.tied);
  EXPECT_EQ(architecture.head, "model.embed_tokens.weight");
}

TEST(ArchitectureFile, EndOfTextIsOneTokenSeveralOrNone) {
  EXPECT_THAT(loaded(with({{"eos_token_id", {5, 7, 9}}})).eos_token_ids, ElementsAre(5, 7, 9));
  EXPECT_THAT(loaded(with({{"eos_token_id", nullptr}})).eos_token_ids, IsEmpty());
  EXPECT_THAT(loaded(without("eos_token_id")).eos_token_ids, IsEmpty());
}

TEST(ArchitectureFile, ActivationsGoByTheirNamesInTransformers) {
  const std::vector<std::pair<std::string, Activation>> known = {
      {"silu", Activation::kSilu}, {"swish", Activation::kSilu},
      {"gelu", Activation::kGelu}, {"gelu_new", Activation::kGeluTanh},
      {"relu", Activation::kRelu}, {"gelu_pytorch_tanh", Activation::kGeluTanh}};
  for (const auto& [name, activation] : known) {
    EXPECT_EQ(loaded(with({{"hidden_act", name}})).activation, activation) << name;
  }
}

json llama3_scaling() {
  return {{"rope_type", "llama3"},
          {"factor", 8.0},
          {"low_freq_factor", 1.0},
          {"high_freq_factor", 4.0},
          {"original_max_position_embeddings", 32}};
}

void expect_llama3(const Rope& rope, double theta) {
  EXPECT_EQ(rope.kind, RopeKind::kLlama3);
  EXPECT_EQ(rope.theta, theta);
  EXPECT_EQ(rope.factor, 8.0);
  EXPECT_EQ(rope.low_freq_factor, 1.0);
  EXPECT_EQ(rope.high_freq_factor, 4.0);
  EXPECT_EQ(rope.original_max_position, 32);
}

TEST(ArchitectureFile, RopeIsReadInItsOlderSpelling) {
  expect_llama3(loaded(with({{"rope_scaling", llama3_scaling()}})).rope, 500000.0);
  json older = llama3_scaling();
  older.erase("rope_type");
  older["type"] = "llama3";
  expect_llama3(loaded(with({{"rope_scaling", older}})).rope, 500000.0);
}

TEST(ArchitectureFile, RopeIsReadInItsNewerSpelling) {
  json parameters = llama3_scaling();
  parameters["rope_theta"] = 70000.0;
  json config = without("rope_theta");
  config["rope_parameters"] = parameters;
  expect_llama3(loaded(config).rope, 70000.0);
  config["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 8.0}};
  EXPECT_EQ(loaded(config).rope.kind, RopeKind::kDefault);
  EXPECT_EQ(loaded(config).rope.theta, 8.0);
}

TEST(ArchitectureFile, RopeScalingWinsOverRopeParametersAsInTransformers) {
  const Rope rope = loaded(with({{"rope_scaling", llama3_scaling()},
                                 {"rope_parameters", {{"rope_type", "default"}}}}))
                        .rope;
  expect_llama3(rope, 500000.0);
}

TEST(ArchitectureFile, RopeWithoutAnyKeyIsTheOriginalOne) {
  const Rope rope = loaded(without("rope_theta")).rope;
  EXPECT_EQ(rope.kind, RopeKind::kDefault);
  EXPECT_EQ(rope.theta, 10000.0);
}

TEST(ArchitectureFile, RopesOfLaterVersionsAreRefused) {
  EXPECT_THAT(loading(with({{"rope_scaling", {{"type", "longrope"}, {"factor", 2.0}}}})),
              ThrowsMessage<ConfigError>(
                  HasSubstr("config.json: rope_scaling.type: \"longrope\": comes later; one of")));
  EXPECT_THAT(loading(with({{"rope_parameters", {{"rope_type", "spiral"}}}})),
              ThrowsMessage<ConfigError>(
                  HasSubstr("rope_parameters.rope_type: \"spiral\": unknown; one of default")));
  EXPECT_THAT(loading(with({{"rope_parameters", {{"full_attention", {{"rope_theta", 1.0}}}}}})),
              ThrowsMessage<ConfigError>(HasSubstr("rope_parameters.full_attention: ")));
}

TEST(ArchitectureFile, LinearAndDynamicRopesHaveAFactor) {
  for (const auto& [type, kind] :
       {std::pair("linear", RopeKind::kLinear), std::pair("dynamic", RopeKind::kDynamic)}) {
    const Rope rope = loaded(with({{"rope_scaling", {{"type", type}, {"factor", 2.5}}}})).rope;
    EXPECT_EQ(rope.kind, kind);
    EXPECT_EQ(rope.factor, 2.5);
    EXPECT_THAT(loading(with({{"rope_scaling", {{"type", type}}}})),
                ThrowsMessage<ConfigError>(HasSubstr("rope_scaling.factor: absent: must be")));
  }
  EXPECT_EQ(loaded(with({{"rope_scaling", {{"type", "dynamic"}, {"factor", 2}}}}))
                .rope.original_max_position,
            64);
}

TEST(ArchitectureFile, YarnIsReadWithItsDefaults) {
  const Rope rope = loaded(with({{"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}}})).rope;
  EXPECT_EQ(rope.kind, RopeKind::kYarn);
  EXPECT_EQ(rope.original_max_position, 64);  // max_position_embeddings
  EXPECT_EQ(rope.beta_fast, 32);
  EXPECT_EQ(rope.beta_slow, 1);
  EXPECT_TRUE(rope.truncate);
  EXPECT_NEAR(rope.attention_factor, 0.1 * std::log(4.0) + 1, 1e-12);
}

TEST(ArchitectureFile, OriginalPositionsOfTheModelGoBeforeThoseOfItsRope) {
  const Rope rope =
      loaded(
          with({{"original_max_position_embeddings", 8},
                {"rope_scaling",
                 {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 16}}}}))
          .rope;
  EXPECT_EQ(rope.original_max_position, 8);
}

TEST(ArchitectureFile, AnEmptyRopeScalingHidesNoRopeParameters) {
  const Rope rope = loaded(with({{"rope_scaling", nlohmann::json::object()},
                                 {"rope_parameters", {{"rope_type", "linear"}, {"factor", 3.0}}}}))
                        .rope;
  EXPECT_EQ(rope.kind, RopeKind::kLinear);
}

TEST(ArchitectureFile, YarnIsReadWithAllItsParameters) {
  json scaling = {
      {"rope_type", "yarn"}, {"factor", 4.0},        {"original_max_position_embeddings", 16},
      {"beta_fast", 8.0},    {"beta_slow", 2.0},     {"truncate", false},
      {"mscale", 2.0},       {"mscale_all_dim", 1.0}};
  const Rope rope = loaded(with({{"rope_scaling", scaling}})).rope;
  EXPECT_EQ(rope.original_max_position, 16);
  EXPECT_EQ(rope.beta_fast, 8);
  EXPECT_EQ(rope.beta_slow, 2);
  EXPECT_FALSE(rope.truncate);
  const double log4 = std::log(4.0);
  EXPECT_NEAR(rope.attention_factor, (0.2 * log4 + 1) / (0.1 * log4 + 1), 1e-12);
  scaling["attention_factor"] = 0.75;
  EXPECT_EQ(loaded(with({{"rope_scaling", scaling}})).rope.attention_factor, 0.75);
  scaling["beta_fast"] = 1.0;
  EXPECT_THAT(loading(with({{"rope_scaling", scaling}})),
              ThrowsMessage<ConfigError>(HasSubstr("beta_fast: 1.0: must not be less than")));
}

TEST(ArchitectureFile, ScaledRopeNeedsAllOfItsParameters) {
  for (const char* key :
       {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}) {
    json scaling = llama3_scaling();
    scaling.erase(key);
    EXPECT_THAT(loading(with({{"rope_scaling", scaling}})),
                ThrowsMessage<ConfigError>(
                    HasSubstr(std::string("rope_scaling.") + key + ": absent: must be")));
  }
  json scaling = llama3_scaling();
  scaling["high_freq_factor"] = 1.0;
  EXPECT_THAT(loading(with({{"rope_scaling", scaling}})),
              ThrowsMessage<ConfigError>(HasSubstr("must exceed low_freq_factor 1")));
}

json of_class(const std::string& name, const json& changes = {}) {
  json config = with({{"architectures", {name}}});
  config.update(changes.is_null() ? json::object() : changes);
  return config;
}

TEST(ArchitectureFile, AMistralWindowIsInEveryBlockOrInNone) {
  const auto windows = [](const json& changes) {
    return loaded(of_class("MistralForCausalLM", changes)).attention_windows;
  };
  EXPECT_THAT(windows({{"sliding_window", 7}}), ElementsAre(7, 7));
  EXPECT_THAT(windows({{"sliding_window", nullptr}}), IsEmpty());
  EXPECT_THAT(windows({}), ElementsAre(4096, 4096));  // what transformers takes
  EXPECT_THAT(loading(of_class("MistralForCausalLM", {{"sliding_window", 0}})),
              ThrowsMessage<ConfigError>(HasSubstr("sliding_window: 0: must be a whole number")));
}

TEST(ArchitectureFile, AQwenWindowIsWhereConfigJsonSaysSo) {
  for (const char* name : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    const auto windows = [&](const json& changes) {
      json config = of_class(name, {{"use_sliding_window", true},
                                    {"sliding_window", 7},
                                    {"max_window_layers", 1},
                                    {"head_dim", 4}});
      config.update(changes);
      return loaded(config).attention_windows;
    };
    EXPECT_THAT(windows(json::object()), ElementsAre(0, 7));
    EXPECT_THAT(windows({{"max_window_layers", 0}}), ElementsAre(7, 7));
    EXPECT_THAT(windows({{"max_window_layers", 2}}), IsEmpty());
    EXPECT_THAT(windows({{"use_sliding_window", false}}), IsEmpty());
    EXPECT_THAT(windows({{"use_sliding_window", nullptr}}), IsEmpty());
    EXPECT_THAT(windows({{"layer_types", {"sliding_attention", "full_attention"}}}),
                ElementsAre(7, 0));
    EXPECT_THAT(
        [&] {
          windows({{"layer_types", {"sliding_attention"}}});
        },
        ThrowsMessage<ConfigError>(HasSubstr("1 entries for 2 blocks")));
    EXPECT_THAT(
        [&] {
          windows({{"layer_types", {"full_attention", "linear_attention"}}});
        },
        ThrowsMessage<ConfigError>(HasSubstr("linear_attention: one of full_attention")));
    EXPECT_THAT(
        [&] {
          windows({{"use_sliding_window", false},
                   {"layer_types", {"full_attention", "sliding_attention"}}});
        },
        ThrowsMessage<ConfigError>(HasSubstr("sliding_attention without a sliding_window")));
  }
}

TEST(ArchitectureFile, Qwen2BiasesArePartOfTheClass) {
  const Architecture architecture = loaded(of_class("Qwen2ForCausalLM"));
  for (const char* role : {"q", "k", "v"}) EXPECT_TRUE(architecture.linear(role).has_bias) << role;
  for (const char* role : {"o", "gate", "up", "down"}) {
    EXPECT_FALSE(architecture.linear(role).has_bias) << role;
  }
}

TEST(ArchitectureFile, Qwen3HasNormsOverHeadsAndAHeadDimOfItsOwn) {
  const Architecture architecture = loaded(of_class("Qwen3ForCausalLM"));
  EXPECT_EQ(architecture.head_dim, 128);
  ASSERT_THAT(architecture.norms, SizeIs(4));
  EXPECT_EQ(architecture.norms[2].role, "q_norm");
  EXPECT_EQ(architecture.norms[2].size, 128);
  EXPECT_EQ(architecture.norms[3].name, "self_attn.k_norm");
  EXPECT_FALSE(architecture.linear("o").has_bias);
  EXPECT_TRUE(
      loaded(of_class("Qwen3ForCausalLM", {{"attention_bias", true}})).linear("o").has_bias);
}

struct WrongConfig {
  std::string key;
  json value;
  std::string message;
};

void PrintTo(const WrongConfig& wrong, std::ostream* out) { *out << wrong.key; }

class ArchitectureFileValue : public ::testing::TestWithParam<WrongConfig> {};

TEST_P(ArchitectureFileValue, RefusesTheValueAndSaysWhatIsRight) {
  EXPECT_THAT(loading(with({{GetParam().key, GetParam().value}})),
              ThrowsMessage<ConfigError>(AllOf(HasSubstr("config.json: " + GetParam().message))));
}

INSTANTIATE_TEST_SUITE_P(
    ArchitectureFile, ArchitectureFileValue,
    ::testing::Values(
        WrongConfig{"architectures",
                    {"Unheard"},
                    "architectures: [\"Unheard\"]: Unheard is unknown; "
                    "known: LlamaForCausalLM"},
        WrongConfig{"architectures", json::array(), "architectures: []: must name"},
        WrongConfig{"architectures", nullptr, "architectures: absent: must name"},
        WrongConfig{"num_hidden_layers", 0, "num_hidden_layers: 0: num_hidden_layers = 0: must be"},
        WrongConfig{"hidden_size", -24, "hidden_size: -24: "},
        WrongConfig{"hidden_size", 24.5, "hidden_size: 24.5: must be a whole number"},
        WrongConfig{"hidden_size", "24", "hidden_size: \"24\": must be a whole number"},
        WrongConfig{"hidden_size", 25,
                    "head_dim: absent: hidden_size / num_attention_heads: 25 / 6 "
                    "is no whole number"},
        WrongConfig{"vocab_size", int64_t{1} << 40, "vocab_size: 1099511627776: "},
        WrongConfig{"intermediate_size", nullptr, "intermediate_size: absent: must be a whole"},
        WrongConfig{"num_key_value_heads", 4,
                    "num_key_value_heads: 4: must divide "
                    "num_attention_heads = 6"},
        WrongConfig{"head_dim", 5, "head_dim: 5: head_dim 5 must be even"},
        WrongConfig{"rms_norm_eps", 0, "rms_norm_eps: 0: must be a number greater than 0"},
        WrongConfig{"rms_norm_eps", nullptr, "rms_norm_eps: absent: must be a number"},
        WrongConfig{"hidden_act", "mish", "hidden_act: \"mish\": one of silu, gelu"},
        WrongConfig{"hidden_act", nullptr, "hidden_act: absent: one of silu, gelu"},
        WrongConfig{"rope_theta", -1.0, "rope_theta: -1.0: must be a number greater than 0"},
        WrongConfig{"attention_bias", "yes", "attention_bias: \"yes\": must be true or false"},
        WrongConfig{"tie_word_embeddings", 1, "tie_word_embeddings: 1: must be true or false"},
        WrongConfig{"eos_token_id", -1, "eos_token_id: -1: must be token ids"},
        WrongConfig{"eos_token_id", "</s>", "eos_token_id: \"</s>\": must be a whole number"},
        WrongConfig{"partial_rotary_factor", 0.5, "partial_rotary_factor: 0.5: not computed"},
        WrongConfig{"rope_parameters",
                    {{"rope_type", "default"}, {"partial_rotary_factor", 0.25}},
                    "rope_parameters.partial_rotary_factor: 0.25: not computed"},
        WrongConfig{
            "quantization_config",
            {{"quant_method", "gptq"}},
            "quantization_config.quant_method: \"gptq\": quantised weights of this kind cannot be "
            "pruned; load the model with transformers, dequantise it"}));

TEST(ArchitectureFile, AbsentConfigJsonIsAnIoError) {
  const testing::TempDir directory;
  EXPECT_THROW(load_architecture(directory.path()), IoError);
}

TEST(ArchitectureFile, ADescriptionOfTheUserAddsAClass) {
  const testing::TempDir directory;
  std::string yaml = builtin_architectures().front().yaml;
  yaml.replace(yaml.find("[LlamaForCausalLM]"), 18, "[HomeGrownForCausalLM]");
  yaml.replace(yaml.find("name: llama"), 11, "name: homegrown");
  std::ofstream(directory / "homegrown.yaml") << yaml;
  const json config = with({{"architectures", {"HomeGrownForCausalLM"}}});
  EXPECT_EQ(loaded(config, directory / "homegrown.yaml").family, "homegrown");
  EXPECT_EQ(loaded(testing::odd_config(), directory / "homegrown.yaml").family, "llama");
  EXPECT_THAT(loading(config), ThrowsMessage<ConfigError>(HasSubstr("--architecture")));
}

json with_experts(const json& changes = json::object()) {
  json config = with({{"architectures", {"Qwen3MoeForCausalLM"}},
                      {"head_dim", 4},
                      {"moe_intermediate_size", 19},
                      {"num_experts", 3},
                      {"num_experts_per_tok", 2},
                      {"norm_topk_prob", true},
                      {"decoder_sparse_step", 1},
                      {"mlp_only_layers", json::array()}});
  config.update(changes);
  return config;
}

TEST(ArchitectureFile, EveryExpertHasLinearsOfItsOwn) {
  const Architecture architecture = loaded(with_experts());
  EXPECT_EQ(architecture.experts.count, 3);
  EXPECT_EQ(architecture.experts.per_token, 2);
  EXPECT_EQ(architecture.experts.router, "mlp.gate");
  EXPECT_TRUE(architecture.experts.sum_to_one);
  EXPECT_EQ(architecture.linears.size(), 4u + 3 * 3);
  const LinearSpec& down = architecture.linear("down.2");
  EXPECT_EQ(down.name, "mlp.experts.2.down_proj");
  EXPECT_EQ(down.part(), "down");
  EXPECT_EQ(down.in, 19);
  EXPECT_EQ(architecture.linear("gate.1").input, architecture.linear("up.1").input);
  EXPECT_NE(architecture.linear("gate.1").input, architecture.linear("gate.2").input);
  EXPECT_EQ(architecture.share_of_tokens(down), 2.0 / 3);
  EXPECT_EQ(architecture.share_of_tokens(architecture.linear("q")), 1);
}

TEST(ArchitectureFile, BlocksWithOneMlpAmongMixturesAreRefused) {
  EXPECT_THAT(loading(with_experts({{"decoder_sparse_step", 2}})),
              ThrowsMessage<ConfigError>(HasSubstr("decoder_sparse_step: 2: not computed")));
  EXPECT_THAT(loading(with_experts({{"mlp_only_layers", {0}}})),
              ThrowsMessage<ConfigError>(HasSubstr("mlp_only_layers: [0]: not computed")));
}

TEST(ArchitectureFile, ATokenHasAtMostAllExperts) {
  EXPECT_THAT(loading(with_experts({{"num_experts_per_tok", 4}})),
              ThrowsMessage<ConfigError>(HasSubstr("at most the number of experts, 3")));
}

json fp8(const json& changes = json::object()) {
  json quantization = {{"quant_method", "fp8"},
                       {"fmt", "e4m3"},
                       {"activation_scheme", "dynamic"},
                       {"weight_block_size", {128, 64}}};
  quantization.update(changes);
  return with({{"quantization_config", quantization}});
}

TEST(ArchitectureFile, Fp8WeightsHaveAScaleForEveryBlock) {
  const Architecture architecture = loaded(fp8());
  EXPECT_EQ(architecture.scale_block.rows, 128);
  EXPECT_EQ(architecture.scale_block.columns, 64);
  EXPECT_THAT(scales_shape(architecture.scale_block, {129, 64}), ElementsAre(2, 1));
  EXPECT_FALSE(loaded(testing::odd_config()).scale_block.is_there());
}

TEST(ArchitectureFile, OtherQuantisationIsRefused) {
  for (const char* method : {"gptq", "awq", "bitsandbytes", "compressed-tensors"}) {
    EXPECT_THAT(loading(fp8({{"quant_method", method}})),
                ThrowsMessage<ConfigError>(AllOf(HasSubstr("quantization_config.quant_method"),
                                                 HasSubstr(method), HasSubstr("dequantise it"))));
  }
  EXPECT_THAT(loading(fp8({{"weight_block_size", nullptr}})),
              ThrowsMessage<ConfigError>(HasSubstr("quantization_config.weight_block_size")));
  EXPECT_THAT(loading(fp8({{"weight_block_size", {128}}})),
              ThrowsMessage<ConfigError>(HasSubstr("two whole numbers")));
  EXPECT_THAT(loading(fp8({{"weight_block_size", {0, 128}}})),
              ThrowsMessage<ConfigError>(HasSubstr("two whole numbers")));
  EXPECT_THAT(loading(fp8({{"activation_scheme", "static"}})),
              ThrowsMessage<ConfigError>(HasSubstr("only dynamic is")));
  EXPECT_THAT(loading(fp8({{"fmt", "e5m2"}})),
              ThrowsMessage<ConfigError>(HasSubstr("only e4m3 is")));
}

}  // namespace
}  // namespace coppice
