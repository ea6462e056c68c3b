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
      take_room(guard);
    } catch (const IoError& error) {
      EXPECT_EQ(error.error_number(), ENOSPC);
      return error.what();
    }
    return "no error";
  }

  // 50 MiB, of which the first `refused_` tries find the disk full.
  void take_room(SpaceGuard&& guard) { take_room(guard); }
  void take_room(SpaceGuard& guard) {
    guard.with_room("/scratch", 50 * kMiB, [this] {
      if (++tries_ <= refused_) throw IoError("reserving", "/scratch/file", ENOSPC, 0, 50 * kMiB);
    });
  }

  std::chrono::seconds patience_{3600};
  int refused_ = 0;
  int tries_ = 0;
  int asked_ = 0;
  int stopped_after_ = -1;
  std::vector<std::string> notes_;
};

TEST_F(SpaceGuardTest, RoomIsNotWaitedFor) {
  take_room(guard({100 * kMiB}));
  EXPECT_EQ(asked_, 1);
  EXPECT_EQ(tries_, 1);
  EXPECT_THAT(notes_, IsEmpty());
}

TEST_F(SpaceGuardTest, GoesOnWhenThereIsRoomAndSaysSo) {
  take_room(guard({kMiB, kMiB, kMiB, 100 * kMiB}));
  EXPECT_EQ(asked_, 4);
  EXPECT_EQ(tries_, 1);
  EXPECT_THAT(notes_, ElementsAre(AllOf(HasSubstr("/scratch"), HasSubstr("1.0 MiB free"),
                                        HasSubstr("--disk-wait")),
                                  HasSubstr("going on")));
}

TEST_F(SpaceGuardTest, LeavesRoomForTheJournal) {
  take_room(guard({50 * kMiB, 100 * kMiB}));
  EXPECT_EQ(asked_, 2);
}

TEST_F(SpaceGuardTest, WhoWasNotQuickEnoughTriesAgain) {
  refused_ = 2;
  take_room(guard({100 * kMiB}));
  EXPECT_EQ(tries_, 3);
  EXPECT_THAT(notes_, ElementsAre(HasSubstr("waiting"), HasSubstr("going on")));
}

TEST_F(SpaceGuardTest, WhatRefusedIsNamed) {
  patience_ = std::chrono::seconds(0);
  refused_ = 100;
  EXPECT_THAT(refusal(guard({100 * kMiB})), AllOf(HasSubstr("reserving"), HasSubstr("--resume")));
}

TEST_F(SpaceGuardTest, ARecordIsWrittenOnAFullDiskThatNobodyWaitsForAnyMore) {
  SpaceGuard full = guard({0});
  stopped_after_ = 0;
  full.give_up();
  full.with_room("/scratch", 0, [this] { ++tries_; });
  EXPECT_EQ(tries_, 1);
  EXPECT_THAT(notes_, IsEmpty());
}

TEST_F(SpaceGuardTest, OtherErrorsAreNotWaitedFor) {
  EXPECT_THROW(guard({100 * kMiB})
                   .with_room("/scratch", kMiB,
                              [] { throw IoError("writing", "/scratch/file", EIO, 0, 1); }),
               IoError);
  EXPECT_THAT(notes_, IsEmpty());
}

TEST_F(SpaceGuardTest, PatienceEndsInAnErrorThatSaysHowToGoOn) {
  patience_ = std::chrono::seconds(0);
  EXPECT_THAT(refusal(guard({kMiB})),
              AllOf(HasSubstr("/scratch"), HasSubstr("1.0 MiB free"), HasSubstr("--resume")));
}

TEST_F(SpaceGuardTest, AStoppedRunDoesNotWait) {
  stopped_after_ = 3;
  EXPECT_THROW(take_room(guard({kMiB})), Interrupted);
}

TEST_F(SpaceGuardTest, OnceGivenUpNobodyWaits) {
  SpaceGuard full = guard({kMiB});
  full.give_up();
  EXPECT_THAT(refusal(full), HasSubstr("no space left"));
}

}  // namespace
}  // namespace coppice
