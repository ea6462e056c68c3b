// Which rows and columns make a unit, for each shape that a family may have.
#include "stages/units/unit_layout.h"

#include <gmock/gmock.h>

#include <stdexcept>

#include "tests/support/tiny_moe.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;
using testing::tiny_llama;

std::vector<std::string> roles(const std::vector<const LinearSpec*>& linears) {
  std::vector<std::string> roles;
  roles.reserve(linears.size());
  for (const LinearSpec* linear : linears) roles.push_back(linear->role);
  return roles;
}

TEST(UnitLayout, NeuronsAreRowsOfGateAndUpAndColumnsOfDown) {
  const Architecture architecture = tiny_llama();
  const auto layouts = unit_layouts(architecture, Half::kMlp);
  ASSERT_EQ(layouts.size(), 1u);
  const UnitLayout& ffn = layouts.front();
  EXPECT_EQ(ffn.kind, UnitLayout::Kind::kFfn);
  EXPECT_EQ(ffn.consumer->role, "down");
  EXPECT_THAT(roles(ffn.producers), ElementsAre("gate", "up"));
  EXPECT_THAT(roles(ffn.shared), ElementsAre());
  EXPECT_EQ(ffn.count, 33);
  EXPECT_EQ(ffn.size, 1);
}

TEST(UnitLayout, QueryHeadsShareKeysAndValues) {
  const Architecture architecture = tiny_llama();
  const auto layouts = unit_layouts(architecture, Half::kAttention);
  ASSERT_EQ(layouts.size(), 1u);
  const UnitLayout& heads = layouts.front();
  EXPECT_EQ(heads.consumer->role, "o");
  EXPECT_THAT(roles(heads.producers), ElementsAre("q"));
  EXPECT_THAT(roles(heads.shared), ElementsAre("k", "v"));
  EXPECT_EQ(heads.count, 4);
  EXPECT_EQ(heads.size, 6);
  EXPECT_EQ(heads.per_shared, 2);
}

TEST(UnitLayout, EveryExpertHasNeuronsOfItsOwn) {
  const Architecture architecture = testing::tiny_moe();
  const auto layouts = unit_layouts(architecture, Half::kMlp);
  ASSERT_EQ(int64_t(layouts.size()), architecture.experts.count);
  for (const UnitLayout& ffn : layouts) {
    const std::string expert = std::to_string(ffn.consumer->expert);
    EXPECT_EQ(ffn.consumer->role, "down." + expert);
    EXPECT_THAT(roles(ffn.producers), ElementsAre("gate." + expert, "up." + expert));
  }
}

TEST(UnitLayout, OnlyConsumersReadUnits) {
  const Architecture architecture = testing::tiny_moe();
  for (const LinearSpec& linear : architecture.linears) {
    const bool is_consumer = linear.part() == "down" || linear.part() == "o";
    EXPECT_EQ(reads_units(architecture, linear), is_consumer) << linear.role;
  }
}

TEST(UnitLayout, UnitsThatDoNotFitAreNamed) {
  Architecture architecture = tiny_llama();
  architecture.linears[4].out = 32;  // gate
  EXPECT_THAT([&] { unit_layouts(architecture, Half::kMlp); },
              ThrowsMessage<std::invalid_argument>(
                  AllOf(HasSubstr("mlp.gate_proj should have 33 rows"), HasSubstr("it has 32"))));
  architecture.heads = 5;
  EXPECT_THAT([&] { unit_layouts(architecture, Half::kAttention); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("24 columns, not 5 units of 6")));
}

}  // namespace
}  // namespace coppice
