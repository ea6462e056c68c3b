#include "configs/family.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/architecture_file.h"
#include "configs/errors.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

std::optional<int64_t> value_of(const std::string& name) {
  if (name == "six") return 6;
  if (name == "four") return 4;
  if (name == "two") return 2;
  if (name == "zero") return 0;
  if (name == "huge") return INT64_MAX;
  return std::nullopt;
}

TEST(Family, SizesAreProductsAndQuotientsFromTheLeft) {
  EXPECT_EQ(evaluate_size("six", value_of), 6);
  EXPECT_EQ(evaluate_size("six*four", value_of), 24);
  EXPECT_EQ(evaluate_size("six / two", value_of), 3);
  EXPECT_EQ(evaluate_size(" six * two / four ", value_of), 3);
  EXPECT_EQ(evaluate_size("four / two / two", value_of), 1);
}

TEST(Family, SizeOfAnUnknownNameIsNothing) {
  EXPECT_EQ(evaluate_size("seven", value_of), std::nullopt);
  EXPECT_EQ(evaluate_size("six / seven", value_of), std::nullopt);
}

TEST(Family, QuotientsLeaveNoRemainder) {
  EXPECT_THAT([] { evaluate_size("six / four", value_of); },
              ThrowsMessage<ConfigError>("six / four: 6 / 4 is no whole number"));
  EXPECT_THROW(evaluate_size("six / zero", value_of), ConfigError);
}

TEST(Family, WholeNumbersAreSizes) {
  EXPECT_EQ(evaluate_size("128", value_of), 128);
  EXPECT_EQ(evaluate_size("six * 10", value_of), 60);
}

TEST(Family, ProductsThatOverflowAreRefused) {
  EXPECT_THAT([] { evaluate_size("huge * two", value_of); },
              ThrowsMessage<ConfigError>(HasSubstr("exceeds")));
}

TEST(Family, OtherArithmeticIsRefused) {
  for (const char* text : {"", "six +two", "six *", "* six", "six four", "(six)", "six // two"}) {
    EXPECT_THAT([&] { evaluate_size(text, value_of); },
                ThrowsMessage<ConfigError>(HasSubstr("names joined by * or /")))
        << text;
  }
}

std::string description() { return builtin_architectures().front().yaml; }

std::string replaced(const std::string& from, const std::string& to) {
  std::string text = description();
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return text.replace(at, from.size(), to);
}

auto parsing(const std::string& from, const std::string& to) {
  return [=] { parse_family("f.yaml", replaced(from, to)); };
}

TEST(Family, EveryBuiltinDescriptionIsRead) {
  ASSERT_FALSE(builtin_architectures().empty());
  for (const BuiltinArchitecture& builtin : builtin_architectures()) {
    EXPECT_EQ(parse_family(builtin.name, builtin.yaml).name, builtin.name);
  }
}

TEST(Family, DescriptionKeepsOrderAndExpressions) {
  const Family family = parse_family("f.yaml", description());
  EXPECT_THAT(family.dims.at("head_dim"),
              ElementsAre("head_dim", "hidden_size / num_attention_heads"));
  ASSERT_EQ(family.linears.size(), 7u);
  EXPECT_EQ(family.linears[3].role, "o");
  EXPECT_EQ(family.linears[3].input, "attention_output");
  EXPECT_EQ(family.linears[3].half, Half::kAttention);
  EXPECT_THAT(family.linears[3].shape, ElementsAre("hidden", "heads*head_dim"));
  EXPECT_THAT(family.units.at("heads").shared, ElementsAre("k", "v"));
}

TEST(Family, UnknownKeysNameLineAndNearestKey) {
  EXPECT_THAT(parsing("claims:", "claim:"),
              ThrowsMessage<ConfigError>("f.yaml:4: claim: unknown key; did you mean claims?"));
  EXPECT_THAT(parsing("  ffn: inter", "  fnn: inter"),
              ThrowsMessage<ConfigError>(HasSubstr("dims.fnn: unknown key; did you mean ffn?")));
  EXPECT_THAT(parsing("gate: {name", "gata: {name"),
              ThrowsMessage<ConfigError>(HasSubstr("block.linears.gata: unknown key")));
  EXPECT_THAT(parsing("half: mlp,", "halv: mlp,"),
              ThrowsMessage<ConfigError>(HasSubstr("block.linears.gate.halv: unknown key")));
}

TEST(Family, AbsentKeysAreNamed) {
  EXPECT_THAT(parsing("name: llama\n", ""),
              ThrowsMessage<ConfigError>(HasSubstr("the key name is absent")));
  EXPECT_THAT(parsing("  vocab: vocab_size\n", ""),
              ThrowsMessage<ConfigError>(
                  AllOf(StartsWith("f.yaml:"), HasSubstr("dims: the key vocab is absent"))));
  EXPECT_THAT(parsing("  embedding: model.embed_tokens.weight\n", ""),
              ThrowsMessage<ConfigError>(HasSubstr("outside: the key embedding is absent")));
}

TEST(Family, FormsThatNoStageComputesAreRefused) {
  EXPECT_THAT(parsing("kind: rms", "kind: group"),
              ThrowsMessage<ConfigError>(HasSubstr(
                  "block.norm.kind: group: not computed by this version; one of rms, layer")));
  EXPECT_THAT(parsing("mask: causal", "mask: prefix"),
              ThrowsMessage<ConfigError>(HasSubstr("block.attention.mask: prefix")));
  EXPECT_THAT(parsing("position: rotary", "position: relative"),
              ThrowsMessage<ConfigError>(HasSubstr("block.attention.position: relative")));
  EXPECT_THAT(parsing("kind: gated", "kind: experts"),
              ThrowsMessage<ConfigError>(HasSubstr("block.mlp.kind: experts")));
}

TEST(Family, WindowsNeedACausalMask) {
  EXPECT_THAT(parsing("{mask: causal,", "{mask: bidirectional, window: {size: w},"),
              ThrowsMessage<ConfigError>(HasSubstr("block.attention.window: not computed")));
}

TEST(Family, LinearsAreInTheOrderOfTheForward) {
  const std::string q =
      "    q:    {name: self_attn.q_proj, half: attention, input: attention_input, "
      "shape: [heads*head_dim, hidden], bias: attention_bias}\n";
  EXPECT_THAT(parsing(q, ""), ThrowsMessage<ConfigError>(HasSubstr("the key q is absent")));
  const std::string without = replaced(q, "");
  std::string last = without;
  last.insert(last.find("\n\n  # What structured") + 1, q);
  EXPECT_THAT([&] { parse_family("f.yaml", last); },
              ThrowsMessage<ConfigError>(
                  HasSubstr("block.linears: must be in the order q, k, v, o, gate, up, down")));
}

TEST(Family, APlainMlpHasNoGate) {
  EXPECT_THAT(parsing("kind: gated", "kind: plain"),
              ThrowsMessage<ConfigError>(HasSubstr("block.linears.gate: unknown key")));
}

TEST(Family, TokenTypesHaveASize) {
  EXPECT_THAT(parsing("  head: lm_head.weight", "  head: lm_head.weight\n  token_types: types"),
              ThrowsMessage<ConfigError>(HasSubstr("dims: the key token_types is absent")));
}

TEST(Family, AnEmbeddingOfItsOwnWidthIsProjected) {
  EXPECT_THAT(parsing("  vocab: vocab_size", "  vocab: vocab_size\n  embedding_width: embed_dim"),
              ThrowsMessage<ConfigError>(HasSubstr("outside: the key project_in is absent")));
}

TEST(Family, PositionsStartAtAWholeRow) {
  const std::string head = "  head: lm_head.weight";
  const auto text = [&](const std::string& row) {
    return head + "\n  positions: {name: p, first_row: " + row + "}";
  };
  EXPECT_EQ(parse_family("f.yaml", replaced(head, text("2"))).first_position_row, 2);
  EXPECT_THAT(
      parsing(head, text("-2")),
      ThrowsMessage<ConfigError>(HasSubstr("outside.positions.first_row: must be a whole")));
}

TEST(Family, ShapesAreTwoExpressionsOverTheSizes) {
  EXPECT_THAT(parsing("shape: [heads*head_dim, hidden]", "shape: [heads*head_size, hidden]"),
              ThrowsMessage<ConfigError>(
                  HasSubstr("block.linears.q.shape: head_size: unknown size; one of blocks")));
  EXPECT_THAT(parsing("shape: [heads*head_dim, hidden]", "shape: [hidden]"),
              ThrowsMessage<ConfigError>(HasSubstr("must be two sizes, [out, in]")));
}

TEST(Family, PrefixHoldsThePlaceOfTheBlock) {
  EXPECT_THAT(
      parsing("model.layers.{block}.", "model.layers."),
      ThrowsMessage<ConfigError>(HasSubstr("block.prefix: model.layers.: must hold {block}")));
}

TEST(Family, UnitsAreMadeOfLinears) {
  EXPECT_THAT(parsing("producers: [gate, up]", "producers: [gate, upp]"),
              ThrowsMessage<ConfigError>(HasSubstr("upp: no linear of the block")));
}

TEST(Family, HalvesAreAttentionOrMlp) {
  EXPECT_THAT(parsing("half: mlp,", "half: both,"),
              ThrowsMessage<ConfigError>(HasSubstr("both: one of attention, mlp")));
}

std::string mixture() {
  for (const BuiltinArchitecture& builtin : builtin_architectures()) {
    if (builtin.name == "mixtral") return builtin.yaml;
  }
  ADD_FAILURE() << "no family with experts";
  return "";
}

auto parsing_mixture(const std::string& from, const std::string& to) {
  return [=] {
    std::string text = mixture();
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    parse_family("f.yaml", text.replace(at, from.size(), to));
  };
}

TEST(Family, LinearsOfAnExpertSayWhereItsNumberGoes) {
  EXPECT_THAT(parsing_mixture("experts.{expert}.w3", "experts.w3"),
              ThrowsMessage<ConfigError>(HasSubstr("block.linears.up.name: block_sparse_moe.experts"
                                                   ".w3: must hold {expert}")));
  EXPECT_THAT(parsing_mixture("expert_{expert}_hidden", "mlp_hidden"),
              ThrowsMessage<ConfigError>(HasSubstr("block.linears.down.input: mlp_hidden: must")));
  EXPECT_THAT(parsing_mixture("self_attn.q_proj", "\"self_attn.{expert}\""),
              ThrowsMessage<ConfigError>(HasSubstr("this is no linear of an expert")));
}

TEST(Family, ExpertsHaveANumberAndWeights) {
  EXPECT_THAT(parsing_mixture("  experts: [num_local_experts, num_experts, 8]\n", ""),
              ThrowsMessage<ConfigError>(HasSubstr("dims: the key experts is absent")));
  EXPECT_THAT(parsing_mixture("weights: float32", "weights: float64"),
              ThrowsMessage<ConfigError>(
                  HasSubstr("block.experts.weights: float64: not computed by this version")));
}

}  // namespace
}  // namespace coppice
