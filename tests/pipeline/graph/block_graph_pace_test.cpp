// A graph whose parts differ in speed: whoever is ahead waits for a token and never takes one more
// than planned. Nothing here measures time; the delays only make one part the slowest.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <latch>
#include <mutex>
#include <set>
#include <thread>

#include "pipeline/graph/block_graph.h"
#include "storage/io/aligned_buffer.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::ElementsAre;
using namespace std::chrono_literals;

constexpr int kSpans = 7;
constexpr uint64_t kSpanBytes = 64 << 10;

std::byte content(uint64_t offset) { return std::byte(uint8_t(offset * 2654435761u >> 13)); }

// Which buffers are held now, by their address; keeps the most at once, and counts those that were
// taken by two.
class Ledger {
 public:
  void take(const void* buffer) {
    std::lock_guard lock(mutex_);
    if (!held_.insert(buffer).second) ++taken_twice_;
    most_ = std::max(most_, int(held_.size()));
  }
  void give_back(const void* buffer) {
    std::lock_guard lock(mutex_);
    held_.erase(buffer);
  }
  int most() const { return most_; }
  int taken_twice() const { return taken_twice_; }
  bool is_empty() const { return held_.empty(); }

 private:
  std::mutex mutex_;
  std::set<const void*> held_;
  int most_ = 0;
  int taken_twice_ = 0;
};

// Completes each batch on a thread of its own, one after the other, `delay` after it was read.
class ThrottledEngine final : public IoEngine {
 public:
  explicit ThrottledEngine(std::unique_ptr<IoEngine> engine) : engine_(std::move(engine)) {}
  std::string_view name() const override { return "throttled"; }

  void submit(ReadBatch batch, ReadCompletion done) override {
    const std::byte* destination = batch.reads.front().into.data();
    in_flight.take(destination);
    if (on_submit) on_submit(batch.reads.front().offset);
    engine_->submit(std::move(batch), [this, destination, done = std::move(done)](
                                          ReadBatch read, std::exception_ptr failure) {
      auto held = std::make_shared<ReadBatch>(std::move(read));
      completions_.post([this, destination, done, held, failure] {
        std::this_thread::sleep_for(delay);
        in_flight.give_back(destination);
        done(std::move(*held), failure);
      });
    });
  }

  std::chrono::microseconds delay{0};
  Ledger in_flight;
  std::function<void(uint64_t offset)> on_submit;

 private:
  SerialExecutor completions_{"completions"};
  std::unique_ptr<IoEngine> engine_;  // last: destroyed first, while completions may still be held
};

enum class Slowest { kDisk, kForward, kAdapt, kStore };

struct Pace {
  Slowest slowest;
  Advance advance;
  int slots, slabs, outputs;
};

std::string name_of(const ::testing::TestParamInfo<Pace>& info) {
  const char* slowest[] = {"SlowDisk", "SlowForward", "SlowAdapt", "SlowStore"};
  const Pace& pace = info.param;
  return std::string(slowest[int(pace.slowest)]) +
         (pace.advance == Advance::kAfterForward ? "AdvanceAfterForward" : "AdvanceAfterAdapt") +
         std::to_string(pace.slots) + "Slots" + std::to_string(pace.slabs) + "Slabs" +
         std::to_string(pace.outputs) + "Outputs";
}

std::vector<Pace> paces() {
  std::vector<Pace> all;
  for (const auto slowest : {Slowest::kDisk, Slowest::kForward, Slowest::kAdapt, Slowest::kStore}) {
    for (const auto advance : {Advance::kAfterAdapt, Advance::kAfterForward}) {
      for (const int slots : {1, 2, 3}) {
        all.push_back({slowest, advance, slots, 1, 2});
        all.push_back({slowest, advance, slots, 3, 1});
      }
    }
  }
  return all;
}

class GraphOfSpans : public ::testing::Test {
 protected:
  GraphOfSpans() : engine_(make_io_engine({})) {
    const auto path = dir_ / "shard";
    std::ofstream out(path, std::ios::binary);
    for (uint64_t i = 0; i < kSpans * kSpanBytes; ++i) out.put(char(content(i)));
    out.close();
    file_ = std::make_unique<ReadFile>(path);
    files_ = {file_.get()};
    work_.num_spans = kSpans;
    work_.plan = [this](GraphSpan& span) { plan(span); };
    work_.forward = [this](GraphSpan& span) { forward(span); };
    work_.adapt = [this](GraphSpan& span) {
      outputs_.take(span.output.data());
      if (slow_.count(Slowest::kAdapt)) std::this_thread::sleep_for(1ms);
      slots_.give_back(span.slot.data());
    };
    work_.store = [this](GraphSpan& span) {
      if (slow_.count(Slowest::kStore)) std::this_thread::sleep_for(1ms);
      times_.push_back(span.times);
      outputs_.give_back(span.output.data());
    };
  }

  void plan(GraphSpan& span) {
    span.files = files_;
    const Extent extent{0, span.index * kSpanBytes, kSpanBytes};
    const uint64_t bytes = kSpans * kSpanBytes;
    ReadPlanOptions options;
    options.max_read_bytes = 16 << 10;
    span.plan = plan_reads({&extent, 1}, {&bytes, 1}, options);
    slots_.take(span.slot.data());
    // The graph lets go of `work` when the span retires.
    span.work = std::shared_ptr<void>(this, [this, index = span.index](void*) {
      std::lock_guard lock(mutex_);
      retired_.push_back(index);
    });
  }

  void forward(const GraphSpan& span) {
    if (slow_.count(Slowest::kForward)) std::this_thread::sleep_for(1ms);
    const std::byte* bytes = span.slot.data() + span.plan.placements[0].slot_offset;
    for (uint64_t i = 0; i < kSpanBytes; ++i) {
      wrong_bytes_ += bytes[i] != content(span.index * kSpanBytes + i);
    }
  }

  GraphResult run(const Pace& pace) {
    slow_ = {pace.slowest};
    if (pace.slowest == Slowest::kDisk) engine_.delay = 500us;
    GraphOptions options;
    options.advance = pace.advance;
    options.slab_bytes = 16 << 10;
    options.num_slabs = pace.slabs;
    for (int i = 0; i < pace.slots; ++i)
      options.slots.push_back(memory_.emplace_back(kSpanBytes).span());
    for (int i = 0; i < pace.outputs; ++i)
      options.outputs.push_back(memory_.emplace_back(4096).span());
    SerialExecutor* adapter = pace.advance == Advance::kAfterForward ? &adapter_ : nullptr;
    BlockGraph graph(std::move(options), work_, engine_, {{device_, adapter}}, store_);
    return graph.run();
  }

  testing::TempDir dir_;
  std::unique_ptr<ReadFile> file_;
  std::vector<const ReadFile*> files_;
  std::deque<AlignedBuffer> memory_;
  ThrottledEngine engine_;
  SerialExecutor device_{"device"}, adapter_{"adapter"}, store_{"store"};
  GraphWork work_;
  std::set<Slowest> slow_;
  Ledger slots_, outputs_;
  std::mutex mutex_;
  std::vector<int> retired_;
  std::vector<SpanTimes> times_;  // store's thread
  int wrong_bytes_ = 0;           // device's thread
};

class BlockGraphPace : public GraphOfSpans, public ::testing::WithParamInterface<Pace> {};

TEST_P(BlockGraphPace, NeverHoldsMoreThanPlannedAndRetiresInOrder) {
  const Pace& pace = GetParam();
  const GraphResult result = run(pace);
  EXPECT_THAT(retired_, ElementsAre(0, 1, 2, 3, 4, 5, 6));
  EXPECT_EQ(result.skipped, 0);
  EXPECT_EQ(wrong_bytes_, 0) << "a slot was read into while it was computed on";
  EXPECT_LE(result.most_slots_in_use, pace.slots);
  EXPECT_LE(result.most_slabs_in_use, pace.slabs);
  EXPECT_LE(result.most_outputs_in_use, pace.outputs);
  // What the graph says of itself, and what was seen from outside.
  EXPECT_LE(slots_.most(), result.most_slots_in_use);
  EXPECT_LE(engine_.in_flight.most(), result.most_slabs_in_use);
  EXPECT_LE(outputs_.most(), result.most_outputs_in_use);
  for (const Ledger* ledger : {&slots_, &outputs_, &engine_.in_flight}) {
    EXPECT_EQ(ledger->taken_twice(), 0);
    EXPECT_TRUE(ledger->is_empty());
  }
}
INSTANTIATE_TEST_SUITE_P(Paces, BlockGraphPace, ::testing::ValuesIn(paces()), name_of);

// The forward of span 0 holds everything up until the span that takes the last slot is being read.
TEST_F(GraphOfSpans, ADiskFasterThanComputeFillsEverySlotAndWaits) {
  constexpr int kSlots = 3;
  std::latch last_slot_is_read(1);
  std::once_flag once;
  engine_.on_submit = [&](uint64_t offset) {
    if (offset / kSpanBytes == kSlots - 1)
      std::call_once(once, [&] { last_slot_is_read.count_down(); });
  };
  work_.forward = [&](GraphSpan& span) {
    if (span.index == 0) last_slot_is_read.wait();
  };
  const GraphResult result = run({Slowest::kForward, Advance::kAfterAdapt, kSlots, 2, 1});
  EXPECT_EQ(result.most_slots_in_use, kSlots);
  EXPECT_THAT(retired_, ElementsAre(0, 1, 2, 3, 4, 5, 6));
}

// The store of span 0 holds its buffer until the adaptation of span 1 has taken the other one.
TEST_F(GraphOfSpans, AStoreSlowerThanComputeFillsEveryOutputAndWaits) {
  std::latch other_is_taken(1);
  const auto adapt = work_.adapt, store = work_.store;
  work_.adapt = [&](GraphSpan& span) {
    adapt(span);
    if (span.index == 1) other_is_taken.count_down();
  };
  work_.store = [&](GraphSpan& span) {
    if (span.index == 0) other_is_taken.wait();
    store(span);
  };
  const GraphResult result = run({Slowest::kStore, Advance::kAfterAdapt, 2, 2, 2});
  EXPECT_EQ(result.most_outputs_in_use, 2);
  EXPECT_THAT(retired_, ElementsAre(0, 1, 2, 3, 4, 5, 6));
}

TEST_F(GraphOfSpans, StampsOfASpanFollowItsWay) {
  for (const Slowest slowest : {Slowest::kDisk, Slowest::kForward}) {
    times_.clear();
    run({slowest, Advance::kAfterAdapt, 2, 2, 1});
    ASSERT_EQ(times_.size(), size_t(kSpans));
    for (const SpanTimes& t : times_) {
      const std::vector<SpanTimes::Time> way = {
          SpanTimes::Time{1ns}, t.reads_idle_since, t.slot_granted, t.reads_begin,
          t.reads_end,          t.forward_begin,    t.forward_end,  t.output_granted,
          t.adapt_begin,        t.adapt_end,        t.store_begin};
      EXPECT_TRUE(std::is_sorted(way.begin(), way.end()));
      EXPECT_LE(t.inputs_there, t.forward_begin);
      EXPECT_LE(t.free_for_forward, t.forward_begin);
      EXPECT_LE(t.free_for_adapt, t.adapt_begin);
    }
    for (int span = 1; span < kSpans; ++span) {
      EXPECT_LE(times_[span - 1].adapt_end, times_[span].inputs_there);
      EXPECT_EQ(times_[span - 1].adapt_end, times_[span].free_for_forward);
    }
  }
}

}  // namespace
}  // namespace coppice
