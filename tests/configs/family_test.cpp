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
  EXPECT_THAT(parsing("  head: lm_head.weight\n", ""),
              ThrowsMessage<ConfigError>(HasSubstr("outside: the key head is absent")));
}

TEST(Family, FormsThatNoStageComputesAreRefused) {
  EXPECT_THAT(parsing("kind: rms", "kind: layer"),
              ThrowsMessage<ConfigError>(
                  HasSubstr("block.norm.kind: layer: not computed by this version; rms is")));
  EXPECT_THAT(parsing("placement: pre", "placement: post"),
              ThrowsMessage<ConfigError>(HasSubstr("block.norm.placement: post")));
  EXPECT_THAT(parsing("mask: causal", "mask: bidirectional"),
              ThrowsMessage<ConfigError>(HasSubstr("block.attention.mask: bidirectional")));
  EXPECT_THAT(parsing("position: rotary", "position: learned"),
              ThrowsMessage<ConfigError>(HasSubstr("block.attention.position: learned")));
  EXPECT_THAT(parsing("kind: gated", "kind: plain"),
              ThrowsMessage<ConfigError>(HasSubstr("block.mlp.kind: plain")));
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

}  // namespace
}  // namespace coppice
