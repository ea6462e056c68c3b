#include "pipeline/space_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cerrno>
#include <vector>

#include "pipeline/interrupt.h"
#include "storage/errors.h"

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kMiB = uint64_t{1} << 20;

// A disk whose free space is a list of answers, the last of which repeats.
class SpaceGuardTest : public ::testing::Test {
 protected:
  SpaceGuard guard(std::vector<uint64_t> free) {
    SpaceGuardOptions options;
    options.patience = patience_;
    options.interval = std::chrono::milliseconds(1);
    options.note = [this](const std::string& line) { notes_.push_back(line); };
    options.stopped = [this] { return stopped_after_ >= 0 && asked_ > stopped_after_; };
    options.free_bytes = [this, free](const std::filesystem::path&) {
      return free[std::min(size_t(asked_++), free.size() - 1)];
    };
    return SpaceGuard(options);
  }
  std::string refusal(SpaceGuard&& guard) { return refusal(guard); }
  std::string refusal(SpaceGuard& guard) {
    try {
      guard.require("/scratch", 50 * kMiB);
    } catch (const IoError& error) {
      EXPECT_EQ(error.error_number(), ENOSPC);
      return error.what();
    }
    return "no error";
  }

  std::chrono::seconds patience_{3600};
  int asked_ = 0;
  int stopped_after_ = -1;
  std::vector<std::string> notes_;
};

TEST_F(SpaceGuardTest, RoomIsNotWaitedFor) {
  guard({100 * kMiB}).require("/scratch", 50 * kMiB);
  EXPECT_EQ(asked_, 1);
  EXPECT_THAT(notes_, IsEmpty());
}

TEST_F(SpaceGuardTest, GoesOnWhenThereIsRoomAndSaysSo) {
  guard({kMiB, kMiB, kMiB, 100 * kMiB}).require("/scratch", 50 * kMiB);
  EXPECT_EQ(asked_, 4);
  EXPECT_THAT(notes_, ElementsAre(AllOf(HasSubstr("/scratch"), HasSubstr("1.0 MiB free"),
                                        HasSubstr("--disk-wait")),
                                  HasSubstr("going on")));
}

TEST_F(SpaceGuardTest, LeavesRoomForTheJournal) {
  guard({50 * kMiB, 100 * kMiB}).require("/scratch", 50 * kMiB);
  EXPECT_EQ(asked_, 2);
}

TEST_F(SpaceGuardTest, PatienceEndsInAnErrorThatSaysHowToGoOn) {
  patience_ = std::chrono::seconds(0);
  EXPECT_THAT(refusal(guard({kMiB})),
              AllOf(HasSubstr("/scratch"), HasSubstr("1.0 MiB free"), HasSubstr("--resume")));
}

TEST_F(SpaceGuardTest, AStoppedRunDoesNotWait) {
  stopped_after_ = 3;
  EXPECT_THROW(guard({kMiB}).require("/scratch", 50 * kMiB), Interrupted);
}

TEST_F(SpaceGuardTest, OnceGivenUpNobodyWaits) {
  SpaceGuard full = guard({kMiB});
  full.give_up();
  EXPECT_THAT(refusal(full), HasSubstr("no space left"));
}

}  // namespace
}  // namespace coppice
