// A trace is read back as what a viewer reads: JSON, rows with names, slices that are nested or
// apart.
#include "pipeline/telemetry/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <barrier>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <thread>

#include "storage/errors.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class TraceTest : public ::testing::Test {
 protected:
  std::string text() const {
    std::ifstream in(path_);
    return std::string(std::istreambuf_iterator<char>(in), {});
  }
  json of_kind(const std::string& kind) const {
    json found = json::array();
    for (const json& event : json::parse(text())) {
      if (event.at("ph") == kind) found.push_back(event);
    }
    return found;
  }
  std::map<int, std::string> rows() const {
    std::map<int, std::string> rows;
    for (const json& event : of_kind("M")) {
      if (event.at("name") == "thread_name") rows[event.at("tid")] = event.at("args").at("name");
    }
    return rows;
  }

  testing::TempDir dir_;
  std::filesystem::path path_ = dir_ / "trace.json";
};

TEST_F(TraceTest, ASliceHasNameRowBeginAndDuration) {
  {
    Trace trace(path_);
    const TraceSlice slice(&trace, Track::kCompute, "block 3: calibrate");
  }
  const json slices = of_kind("X");
  ASSERT_EQ(slices.size(), 1);
  EXPECT_EQ(slices[0].at("name"), "block 3: calibrate");
  EXPECT_EQ(rows().at(slices[0].at("tid")), "compute");
  EXPECT_GE(slices[0].at("ts"), 0);
  EXPECT_GE(slices[0].at("dur"), 0);
}

TEST_F(TraceTest, AnInnerSliceLiesInsideTheOuterOneInTheSameRow) {
  {
    Trace trace(path_);
    const TraceSlice outer(&trace, Track::kCompute, "outer");
    const TraceSlice inner(&trace, Track::kCompute, "inner");
  }
  const json slices = of_kind("X");  // an inner one is finished, and written, first
  ASSERT_EQ(slices.size(), 2);
  const json &inner = slices[0], &outer = slices[1];
  EXPECT_EQ(inner.at("name"), "inner");
  EXPECT_EQ(inner.at("tid"), outer.at("tid"));
  EXPECT_LE(outer.at("ts").get<double>(), inner.at("ts").get<double>());
  EXPECT_LE(inner.at("ts").get<double>() + inner.at("dur").get<double>(),
            outer.at("ts").get<double>() + outer.at("dur").get<double>());
}

TEST_F(TraceTest, ThreadsAtWorkAtOnceHaveRowsOfTheirOwn) {
  std::barrier all_at_work(3);
  {
    Trace trace(path_);
    std::vector<std::jthread> threads;
    threads.reserve(3);
    for (int i = 0; i < 3; ++i) {
      threads.emplace_back([&] {
        const TraceSlice slice(&trace, Track::kEncode, "window");
        all_at_work.arrive_and_wait();
      });
    }
  }
  std::set<int> tids;
  for (const json& slice : of_kind("X")) tids.insert(slice.at("tid").get<int>());
  EXPECT_EQ(tids.size(), 3u);
  std::vector<std::string> names;
  for (const auto& [tid, name] : rows()) names.push_back(name);
  EXPECT_THAT(names, ElementsAre("codec encode", "codec encode 2", "codec encode 3"));
}

TEST_F(TraceTest, AThreadThatComesLaterTakesARowThatIsFree) {
  {
    Trace trace(path_);
    for (int i = 0; i < 3; ++i) {
      std::jthread([&] { const TraceSlice slice(&trace, Track::kDecode, "window"); });
    }
  }
  EXPECT_EQ(of_kind("X").size(), 3);
  EXPECT_EQ(rows().size(), 1u);
}

TEST_F(TraceTest, ManyEventsOfManyThreadsAllArrive) {
  constexpr int kThreads = 4, kEvents = 3000;
  {
    Trace trace(path_);
    std::vector<std::jthread> threads;
    threads.reserve(kThreads);
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&] {
        for (int event = 0; event < kEvents; ++event) {
          const TraceSlice outer(&trace, Track::kDecode, "outer");
          const TraceSlice inner(&trace, Track::kDecode, "inner");
          const uint64_t id = trace.begin(Track::kReads, "read", json::object());
          trace.end(Track::kReads, "read", id);
        }
      });
    }
  }
  EXPECT_EQ(of_kind("X").size(), 2 * kThreads * kEvents);
  EXPECT_EQ(of_kind("b").size(), kThreads * kEvents);
  EXPECT_EQ(of_kind("e").size(), kThreads * kEvents);
}

TEST_F(TraceTest, BeginAndEndOfOverlappingReadsPairUpByNumber) {
  {
    Trace trace(path_);
    const uint64_t first = trace.begin(Track::kReads, "read", {{"bytes", 1}});
    const uint64_t second = trace.begin(Track::kReads, "read", {{"bytes", 2}});
    trace.end(Track::kReads, "read", first);
    trace.end(Track::kReads, "read", second);
  }
  const json begins = of_kind("b"), ends = of_kind("e");
  ASSERT_EQ(begins.size(), 2);
  ASSERT_EQ(ends.size(), 2);
  for (int i = 0; i < 2; ++i) {
    for (const char* key : {"id2", "cat", "name", "tid"}) {
      EXPECT_EQ(begins[i].at(key), ends[i].at(key)) << key;
    }
    EXPECT_EQ(begins[i].at("args").at("bytes"), i + 1);
    EXPECT_EQ(rows().at(begins[i].at("tid")), "reads in flight");
  }
  EXPECT_NE(begins[0].at("id2"), begins[1].at("id2"));
}

TEST_F(TraceTest, NamesComeBackAsTheyWere) {
  const std::vector<std::string> names = {"say \"a\\b\"", "line\nbreak\ttab", "größer ✓", "\x01"};
  {
    Trace trace(path_);
    for (const std::string& name : names) const TraceSlice slice(&trace, Track::kCompute, name);
  }
  std::vector<std::string> read;
  for (const json& slice : of_kind("X")) read.push_back(slice.at("name"));
  EXPECT_EQ(read, names);
}

TEST_F(TraceTest, ANameThatIsNoTextDoesNotSpoilTheFile) {
  {
    Trace trace(path_);
    const TraceSlice slice(&trace, Track::kCompute, "\xff\xfe");
  }
  EXPECT_EQ(of_kind("X").size(), 1);
}

// What a killed run leaves: everything but the events of the last moments, and no bracket.
TEST_F(TraceTest, WhatIsInTheFileBeforeTheEndLoadsOnceItIsClosed) {
  Trace trace(path_);
  for (int i = 0; i < 10000; ++i) const TraceSlice slice(&trace, Track::kCompute, "slice");
  const json prefix = json::parse(text() + "]");
  EXPECT_GT(prefix.size(), 4096u);
}

TEST_F(TraceTest, WhereNothingHappensAnEarlierTimelineStays) {
  { Trace trace(path_); }
  EXPECT_FALSE(std::filesystem::exists(path_));
  {
    Trace trace(path_);
    const TraceSlice slice(&trace, Track::kCompute, "slice");
  }
  const std::string before = text();
  { Trace trace(path_); }
  EXPECT_EQ(text(), before);
}

TEST_F(TraceTest, NothingTracedIsNothingDone) {
  bool named = false;
  {
    const TraceSlice slice(nullptr, Track::kCompute, "slice");
    const TraceSlice other(nullptr, Track::kCompute, [&] {
      named = true;
      return std::string("slice");
    });
  }
  EXPECT_FALSE(named);
  EXPECT_EQ(make_trace({}, {}), nullptr);
}

TEST_F(TraceTest, APathThatCannotBeWrittenIsRefusedAtOnce) {
  const auto path = dir_ / "absent" / "trace.json";
  try {
    Trace trace(path);
    FAIL() << "nothing was thrown";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr(path.string()));
    EXPECT_EQ(error.error_number(), ENOENT);
  }
  EXPECT_THROW(Trace(std::filesystem::path(dir_ / "")), IoError);
}

// /dev/full takes an opening and refuses every write.
TEST_F(TraceTest, ADiskThatIsFullEndsTheTraceAndNotTheRun) {
  std::string told;
  {
    Trace trace("/dev/full", [&](const std::string& line) { told += line; });
    const TraceSlice slice(&trace, Track::kCompute, "slice");
  }
  EXPECT_THAT(told, HasSubstr("/dev/full"));
  EXPECT_THAT(told, HasSubstr("goes on without it"));
}

}  // namespace
}  // namespace coppice
