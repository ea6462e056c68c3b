#include "pipeline/run_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "configs/errors.h"
#include "storage/io/file.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::HasSubstr;

class RunStateTest : public ::testing::Test {
 protected:
  RunStateTest() { std::filesystem::create_directories(dir_ / "out"); }
  RunState open(Resume resume, const Fingerprint& fingerprint = {{"recipe.lr", "0.1"}}) {
    return RunState(dir_ / "work", {dir_ / "out"}, fingerprint, resume, "coppice run --resume");
  }
  template <typename Action>
  std::string refusal(Action action) {
    try {
      action();
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "nothing was refused";
  }

  testing::TempDir dir_;
};

TEST_F(RunStateTest, RemembersWhatWasRecorded) {
  {
    RunState state = open(Resume::kNo);
    EXPECT_FALSE(state.is_resumed());
    state.record_outer(0, write_file(dir_ / "out/outer", "abc"));
    state.record_boundary({Stream::kDense, 4}, write_file(dir_ / "work/dense.4.h5", "x"));
    state.record_block(0, 1, {write_file(dir_ / "out/shard", "def")}, {{"block", 1}});
  }
  RunState state = open(Resume::kYes);
  EXPECT_TRUE(state.is_resumed());
  EXPECT_TRUE(state.has_outer(0));
  EXPECT_TRUE(state.has_boundary({Stream::kDense, 4}));
  EXPECT_FALSE(state.has_boundary({Stream::kPropagated, 4}));
  EXPECT_TRUE(state.has_block(0, 1));
  EXPECT_FALSE(state.has_block(0, 0));
  EXPECT_EQ(state.block_reports(0).at(1).at("block"), 1);
  EXPECT_FALSE(state.is_finished());
}

TEST_F(RunStateTest, RecordWithoutItsFileDoesNotCount) {
  {
    RunState state = open(Resume::kNo);
    state.record_block(0, 0, {write_file(dir_ / "out/lost", "abc")}, {{"block", 0}});
    state.record_block(0, 1, {write_file(dir_ / "out/cut", "abc")}, {{"block", 1}});
  }
  std::filesystem::remove(dir_ / "out/lost");
  std::filesystem::resize_file(dir_ / "out/cut", 1);
  RunState state = open(Resume::kYes);
  EXPECT_FALSE(state.has_block(0, 0));
  EXPECT_FALSE(state.has_block(0, 1));
}

TEST_F(RunStateTest, RecipesOfASweepHaveRecordsOfTheirOwn) {
  const auto sweep = [&](Resume resume) {
    return RunState(dir_ / "work", {dir_ / "a", dir_ / "b"}, {{"recipes", "2"}}, resume, "resume");
  };
  {
    RunState state = sweep(Resume::kNo);
    std::filesystem::create_directories(dir_ / "b");
    state.record_outer(1, write_file(dir_ / "b/outer", "abc"));
    state.record_block(1, 0, {write_file(dir_ / "b/shard", "def")}, {{"block", 0}});
    state.record_block(0, 2, {}, {{"block", 2}});  // nothing is written of this one
  }
  const RunState state = sweep(Resume::kYes);
  EXPECT_FALSE(state.has_outer(0));
  EXPECT_TRUE(state.has_outer(1));
  EXPECT_FALSE(state.has_block(0, 0));
  EXPECT_TRUE(state.has_block(1, 0));
  EXPECT_TRUE(state.has_block(0, 2));
  EXPECT_EQ(state.block_reports(0).size(), 1);
}

TEST_F(RunStateTest, WhatWasFoundAndJudgedIsReadBackToTheSameBits) {
  const nlohmann::json found = {{"trials", {{{"lr", 1e-3}, {"log_error", -0.1 - 0.2}}}}};
  {
    RunState state = open(Resume::kNo);
    EXPECT_TRUE(state.judged().is_null());
    state.record_survey(4, found);
    state.record_held_out(6, write_file(dir_ / "work/held_out.6.safetensors", "abc"));
    state.record_held_out(8, write_file(dir_ / "work/held_out.8.safetensors", "abc"));
    state.record_judged({{"losses", {1.0 / 3}}});
  }
  std::filesystem::remove(dir_ / "work/held_out.6.safetensors");
  const RunState state = open(Resume::kYes);
  EXPECT_EQ(state.surveys().at(4), found);
  EXPECT_FALSE(state.has_held_out(6));
  EXPECT_TRUE(state.has_held_out(8));
  EXPECT_EQ(state.judged().at("losses").at(0), 1.0 / 3);
}

TEST_F(RunStateTest, EarlierRunIsRefusedWithTheCommandThatContinues) {
  open(Resume::kNo);
  EXPECT_THAT(refusal([&] { open(Resume::kNo); }), HasSubstr("coppice run --resume"));
}

TEST_F(RunStateTest, AnotherFingerprintIsRefusedByItsKeys) {
  open(Resume::kNo);
  EXPECT_THAT(refusal([&] { open(Resume::kYes, {{"recipe.lr", "0.2"}}); }), HasSubstr("recipe.lr"));
}

TEST_F(RunStateTest, AnOutputThatIsNotOfTheRunIsRefused) {
  const auto into = [&](const char* output) {
    return RunState(dir_ / "work", {dir_ / output}, {}, Resume::kYes, "coppice run --resume");
  };
  into("out").record_outer(0, write_file(dir_ / "out/outer", "abc"));
  std::filesystem::create_directories(dir_ / "photos");
  write_file(dir_ / "photos/a.jpg", "…");
  EXPECT_THAT(refusal([&] { into("photos"); }), HasSubstr("photos: not empty"));
  EXPECT_FALSE(into("nowhere").has_outer(0));  // made again there
  std::filesystem::rename(dir_ / "out", dir_ / "moved");
  EXPECT_TRUE(into("moved").has_outer(0));
  std::filesystem::create_directories(dir_ / "out");
  write_file(dir_ / "out/outer.unrecorded", "x");  // where it began, it may have been killed
  EXPECT_FALSE(into("out").has_outer(0));
}

TEST_F(RunStateTest, ForeignFilesInTheWorkDirectoryAreRefused) {
  std::filesystem::create_directories(dir_ / "work");
  write_file(dir_ / "work/photo.jpg", "…");
  EXPECT_THAT(refusal([&] { open(Resume::kYes); }), HasSubstr("not the work directory of a run"));
}

TEST_F(RunStateTest, TokensAloneAreNoRun) {
  std::filesystem::create_directories(dir_ / "work/tokens");
  EXPECT_FALSE(open(Resume::kNo).is_resumed());
}

TEST_F(RunStateTest, DamagedScratchDoesNotCount) {
  {
    RunState state = open(Resume::kNo);
    state.record_held_out(2, write_file(dir_ / "work/held_out.2.safetensors", "abc"));
    state.record_held_out(4, write_file(dir_ / "work/held_out.4.safetensors", "abc"));
    state.record_unit_scores(write_file(dir_ / "work/unit_scores.safetensors", "abc"));
    EXPECT_TRUE(state.has_unit_scores());
  }
  write_file(dir_ / "work/held_out.4.safetensors", "abd");
  {
    RunState state = open(Resume::kYes);
    EXPECT_TRUE(state.has_held_out(2));
    EXPECT_FALSE(state.has_held_out(4));
    EXPECT_TRUE(state.has_unit_scores());
  }
  write_file(dir_ / "work/unit_scores.safetensors", "abd");
  EXPECT_FALSE(open(Resume::kYes).has_unit_scores());
}

TEST_F(RunStateTest, AReopenedRunIsNotFinishedUntilItIsAgain) {
  {
    RunState state = open(Resume::kNo);
    state.record_finished({});
    state.record_reopened();
    EXPECT_FALSE(state.is_finished());
  }
  EXPECT_FALSE(open(Resume::kYes).is_finished());
  open(Resume::kYes).record_finished({});
  EXPECT_TRUE(open(Resume::kYes).is_finished());
}

TEST_F(RunStateTest, FinishedRunSaysSo) {
  open(Resume::kNo).record_finished({});
  EXPECT_TRUE(open(Resume::kYes).is_finished());
}

}  // namespace
}  // namespace coppice
