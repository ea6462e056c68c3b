#include "stages/targets.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <utility>

#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

bool is_targeted(std::vector<std::string> patterns, const std::string& linear) {
  PruneOptions options;
  options.targets = std::move(patterns);
  return is_target(options, linear);
}

TEST(Targets, EverythingWithoutPatternsButWhatIsIgnored) {
  EXPECT_TRUE(is_targeted({}, "model.layers.3.mlp.up_proj"));
  EXPECT_FALSE(is_targeted({}, "lm_head"));
}

TEST(Targets, NamesMatchWholeLastComponents) {
  const std::string linear = "model.layers.3.mlp.up_proj";
  EXPECT_TRUE(is_targeted({linear}, linear));
  EXPECT_TRUE(is_targeted({"mlp.up_proj"}, linear));
  EXPECT_TRUE(is_targeted({"down_proj", "up_proj"}, linear));
  EXPECT_FALSE(is_targeted({"p_proj"}, linear));
  EXPECT_FALSE(is_targeted({"model.layers.3"}, linear));
  EXPECT_FALSE(is_targeted({".up_proj"}, linear));
}

TEST(Targets, ExpressionsAreSearchedFromTheStart) {
  const std::string linear = "model.layers.3.mlp.up_proj";
  EXPECT_TRUE(is_targeted({"re:model\\.layers\\.[0-3]\\."}, linear));
  EXPECT_TRUE(is_targeted({"re:.*up_proj"}, linear));
  EXPECT_FALSE(is_targeted({"re:up_proj"}, linear));
  EXPECT_FALSE(is_targeted({"re:.*up_proj$"}, linear + "2"));
}

TEST(Targets, IgnoreWinsOverTargets) {
  PruneOptions options;
  options.targets = {"up_proj"};
  options.ignore = {"re:.*\\.3\\."};
  EXPECT_FALSE(is_target(options, "model.layers.3.mlp.up_proj"));
  EXPECT_TRUE(is_target(options, "model.layers.4.mlp.up_proj"));
}

TEST(Targets, WrongExpressionIsNamedEvenWhereItDecidesNothing) {
  PruneOptions options;
  options.targets = {"up_proj", "re:(unclosed"};
  EXPECT_THAT([&] { is_target(options, "mlp.up_proj"); },
              ThrowsMessage<std::invalid_argument>(HasSubstr("re:(unclosed")));
}

TEST(Targets, SparsityIsOfTheFirstRuleElseOfTheBlockElseTheOneNumber) {
  const Architecture architecture = testing::tiny_llama();
  PruneOptions options;
  options.sparsity = 0.5;
  const auto sparsities = [&](HalfRange halves) {
    std::vector<double> found;
    for (const Target& target : targets_of(architecture, halves, options)) {
      found.push_back(target.sparsity);
    }
    return found;
  };
  EXPECT_THAT(sparsities({1, 2}), ElementsAre(0.5, 0.5, 0.5));
  options.block_sparsities = {0.1, 0.2};
  EXPECT_THAT(sparsities({3, 4}), ElementsAre(0.2, 0.2, 0.2));
  options.sparsity_map = {{"re:.*\\.1\\..*up_proj", 0.7}, {"up_proj", 0.8}, {"down_proj", 0.9}};
  EXPECT_THAT(sparsities({1, 2}), ElementsAre(0.1, 0.8, 0.9));
  EXPECT_THAT(sparsities({3, 4}), ElementsAre(0.2, 0.7, 0.9));
}

TEST(Targets, OfAWindowAreThoseOfItsHalvesInOrder) {
  const Architecture architecture = testing::tiny_llama();
  const auto names = [&](HalfRange halves) {
    PruneOptions options;
    options.ignore = {"k_proj", "re:.*up_proj"};
    std::vector<std::string> names;
    for (const Target& target : targets_of(architecture, halves, options)) {
      names.push_back(target.tensor);
    }
    return names;
  };
  EXPECT_THAT(names({4, 5}), ElementsAre("model.layers.2.self_attn.q_proj.weight",
                                         "model.layers.2.self_attn.v_proj.weight",
                                         "model.layers.2.self_attn.o_proj.weight"));
  EXPECT_THAT(names({5, 6}), ElementsAre("model.layers.2.mlp.gate_proj.weight",
                                         "model.layers.2.mlp.down_proj.weight"));
}

}  // namespace
}  // namespace coppice
