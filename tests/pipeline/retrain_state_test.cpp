#include "pipeline/retrain_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "configs/errors.h"
#include "tests/support/temp_dir.h"
#include "tests/support/tiny_model.h"
#include "tests/support/tolerance.h"

namespace coppice {
namespace {

using ::testing::HasSubstr;
using testing::IsIdenticalTo;
using ::testing::SizeIs;

class RetrainStateTest : public ::testing::Test {
 protected:
  RetrainState open(Resume resume, const Fingerprint& fingerprint = {{"retrain.lr", "0.1"}}) {
    return RetrainState(dir_ / "work", dir_ / "out", fingerprint, resume,
                        "coppice retrain --resume");
  }
  std::vector<std::filesystem::path> files() const {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(dir_ / "work")) {
      if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
    }
    return files;
  }
  void advance(int times) {
    for (int i = 0; i < times; ++i) trainer_.advance();
  }

  testing::TempDir dir_;
  ResidentModel model_ = testing::tiny_pruned_model();
  at::Tensor text_ = testing::counting_text(12, 7);
  RetrainOptions options_ = testing::tiny_retrain_options();
  Retrainer trainer_{model_, text_, options_};
};

TEST_F(RetrainStateTest, PutsAnotherTrainerWhereTheFirstOneWas) {
  {
    RetrainState state = open(Resume::kNo);
    EXPECT_FALSE(state.has_saved());
    advance(2);
    state.save(trainer_, 1.5);
    advance(6);  // an epoch and its evaluation
    state.save(trainer_, 2.5);
  }
  const RetrainState state = open(Resume::kYes);
  ASSERT_TRUE(state.has_saved());
  EXPECT_EQ(state.seconds(), 2.5);
  Retrainer other(model_, text_, options_);
  state.restore(other);
  EXPECT_EQ(other.progress().step, trainer_.progress().step);
  EXPECT_EQ(other.progress().tokens, trainer_.progress().tokens);
  EXPECT_EQ(other.progress().epoch_loss, trainer_.progress().epoch_loss);
  EXPECT_EQ(other.progress().losses, trainer_.progress().losses);
  EXPECT_EQ(other.progress().validations, trainer_.progress().validations);
  EXPECT_EQ(other.progress().best, trainer_.progress().best);
  EXPECT_EQ(other.progress().loss_pruned, trainer_.progress().loss_pruned);
  EXPECT_FALSE(other.progress().loss_retrained.has_value());
  const NamedTensors expected = trainer_.state();
  for (const auto& [name, tensor] : other.state()) {
    EXPECT_THAT(tensor, IsIdenticalTo(expected.at(name))) << name;
  }
}

TEST_F(RetrainStateTest, KeepsOneFile) {
  RetrainState state = open(Resume::kNo);
  for (int i = 0; i < 3; ++i) {
    advance(1);
    state.save(trainer_, 0);
    EXPECT_THAT(files(), SizeIs(1));
  }
}

TEST_F(RetrainStateTest, FileThatIsNotWhatWasRecordedDoesNotCount) {
  {
    RetrainState state = open(Resume::kNo);
    advance(1);
    state.save(trainer_, 0);
  }
  std::fstream file(files().at(0), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-1, std::ios::end).put('\x55');
  file.close();
  EXPECT_FALSE(open(Resume::kYes).has_saved());
}

TEST_F(RetrainStateTest, FinishedRunKeepsNoTensors) {
  {
    RetrainState state = open(Resume::kNo);
    advance(1);
    state.save(trainer_, 0);
    state.record_finished({});
  }
  EXPECT_THAT(files(), SizeIs(0));
  EXPECT_TRUE(open(Resume::kYes).is_finished());
}

TEST_F(RetrainStateTest, OtherOptionsAreRefusedByName) {
  { open(Resume::kNo); }
  try {
    open(Resume::kYes, {{"retrain.lr", "0.2"}});
    FAIL() << "nothing was refused";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("retrain.lr"));
  }
}

}  // namespace
}  // namespace coppice
