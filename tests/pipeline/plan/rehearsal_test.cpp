// A slice keeps the shape of its block, and the rehearsal runs every stage of the recipe on it.
#include "pipeline/plan/rehearsal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/tiny_llama.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Gt;
using ::testing::IsEmpty;
using ::testing::Key;
using ::testing::Lt;
using ::testing::Pair;

/// `ffn` neurons, `kv_heads` groups of `group` heads of 16.
Architecture llama_of(int64_t ffn, int64_t kv_heads, int64_t group) {
  Architecture a = testing::tiny_llama();
  a.ffn = ffn;
  a.kv_heads = kv_heads;
  a.heads = kv_heads * group;
  a.head_dim = 16;
  for (LinearSpec& linear : a.linears) {
    if (linear.role == "q") linear.out = a.heads * a.head_dim;
    if (linear.role == "k" || linear.role == "v") linear.out = a.kv_heads * a.head_dim;
    if (linear.role == "o") linear.in = a.heads * a.head_dim;
    if (linear.role == "gate" || linear.role == "up") linear.out = ffn;
    if (linear.role == "down") linear.in = ffn;
  }
  return a;
}

void expect_consistent(const Architecture& slice) {
  EXPECT_EQ(slice.heads % slice.kv_heads, 0);
  EXPECT_EQ(slice.linear("q").out, slice.heads * slice.head_dim);
  EXPECT_EQ(slice.linear("k").out, slice.kv_heads * slice.head_dim);
  EXPECT_EQ(slice.linear("v").out, slice.kv_heads * slice.head_dim);
  EXPECT_EQ(slice.linear("o").in, slice.heads * slice.head_dim);
  EXPECT_EQ(slice.linear("gate").out, slice.ffn);
  EXPECT_EQ(slice.linear("up").out, slice.ffn);
  EXPECT_EQ(slice.linear("down").in, slice.ffn);
  for (const char* role : {"q", "k", "v", "gate", "up"}) {
    EXPECT_EQ(slice.linear(role).in, slice.hidden) << role;
  }
}

TEST(SliceOf, AllOfItIsTheBlock) {
  const Architecture whole = llama_of(1000, 8, 4);
  const Architecture slice = slice_of(whole, 1);
  expect_consistent(slice);
  EXPECT_EQ(slice.ffn, 1000);
  EXPECT_EQ(slice.heads, 32);
  EXPECT_EQ(slice.kv_heads, 8);
}

TEST(SliceOf, AShareHasWholeGroups) {
  const Architecture slice = slice_of(llama_of(1024, 8, 4), 0.25);
  expect_consistent(slice);
  EXPECT_EQ(slice.ffn, 256);
  EXPECT_EQ(slice.kv_heads, 2);
  EXPECT_EQ(slice.heads, 8);
}

TEST(SliceOf, BelowOneGroupTheGroupIsCut) {
  const Architecture slice = slice_of(llama_of(1024, 8, 4), 1.0 / 16);
  expect_consistent(slice);
  EXPECT_EQ(slice.kv_heads, 1);
  EXPECT_EQ(slice.heads, 2);
}

TEST(SliceOf, TheLeastIsOneHeadAnd64Neurons) {
  const Architecture slice = slice_of(llama_of(1024, 8, 4), 1e-6);
  expect_consistent(slice);
  EXPECT_EQ(slice.heads, 1);
  EXPECT_EQ(slice.ffn, 64);
}

TEST(SliceOf, NarrowBlocksStayWhole) {
  const Architecture slice = slice_of(llama_of(24, 1, 2), 0.01);
  expect_consistent(slice);
  EXPECT_EQ(slice.ffn, 24);
}

class RehearsalTest : public ::testing::Test {
 protected:
  StageFactors corrections() {
    std::vector<StageFactors> passes;
    device_->executor().run(
        [&] { passes = rehearse(*device_, architecture_, recipe_, 8, 16, rates_, limits_); });
    return corrections_of(passes);
  }

  std::unique_ptr<Device> device_ = make_device({.device = "cpu"});
  Architecture architecture_ = llama_of(192, 2, 2);
  Recipe recipe_;
  Rates rates_{1e10, 1e10, 1e10, 1e9, 1e8};
  RehearsalLimits limits_;
};

TEST_F(RehearsalTest, EveryStageOfTheRecipeIsTimed) {
  const auto found = corrections();
  EXPECT_THAT(found, ElementsAre(Key("calibrate"), Key("prune"), Key("reconstruct")));
  EXPECT_THAT(found, Each(Pair(::testing::_, AllOf(Gt(0.0), Lt(1e6)))));
}

TEST_F(RehearsalTest, WithoutReconstructionThereIsNone) {
  recipe_.reconstruct.window = {WindowKind::kNone};
  EXPECT_THAT(corrections(), ElementsAre(Key("calibrate"), Key("prune")));
}

TEST_F(RehearsalTest, WorksForEveryStoredDtypeAndWindow) {
  recipe_.reconstruct.window = {WindowKind::kBlock};
  for (const char* dtype : {"F32", "F16", "BF16"}) {
    architecture_.dtype = dtype;
    EXPECT_EQ(corrections().size(), 3U) << dtype;
  }
}

TEST_F(RehearsalTest, CorrectionsAreOfTheTimeByTheRates) {
  const double slow = corrections().at("prune");
  rates_.touched_bytes *= 1e6;
  rates_.selected_weights *= 1e6;
  EXPECT_GT(corrections().at("prune"), 100 * slow);
}

TEST_F(RehearsalTest, AStageWithoutWorkHasNoCorrection) {
  recipe_.reconstruct.window = {WindowKind::kNone};
  recipe_.prune.ignore = {"re:.*layers\\.0\\..*"};
  EXPECT_THAT(corrections(), ElementsAre(Key("calibrate")));
}

TEST_F(RehearsalTest, WhatIsAboveTheLimitsIsNotTried) {
  limits_.bytes = uint64_t{1} << 20;
  EXPECT_THAT(corrections(), IsEmpty());
  limits_ = {.seconds = 1e-9};
  EXPECT_THAT(corrections(), IsEmpty());
}

// What does not shrink with the slice may take most of them.
TEST_F(RehearsalTest, TheSliceShrinksUntilItIsBelowTheLimits) {
  architecture_ = llama_of(200'000, 2, 2);
  rates_ = {1e12, 1e12, 1e12, 1e11, 1e10};  // the whole block would be fast enough
  limits_.bytes = uint64_t{64} << 20;
  EXPECT_EQ(corrections().size(), 3U);
}

TEST_F(RehearsalTest, APatternThatDoesNotDivideTheSliceIsNotRehearsed) {
  recipe_.prune.pattern = {2, 7};
  EXPECT_THAT(corrections(), IsEmpty());
}

TEST(CorrectionsOf, TheFasterHalfOfThePassesCounts) {
  EXPECT_THAT(corrections_of({{{"a", 9}, {"b", 1}}, {{"a", 1}, {"b", 1}}, {{"a", 3}, {"b", 4}}}),
              ElementsAre(Pair("a", 2), Pair("b", 1)));
  EXPECT_THAT(corrections_of({{{"a", 5}}, {{"a", 2}}}), ElementsAre(Pair("a", 2)));
  EXPECT_THAT(corrections_of({}), IsEmpty());
}

}  // namespace
}  // namespace coppice
