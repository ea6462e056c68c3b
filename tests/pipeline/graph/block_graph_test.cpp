// The laws of the graph, with callables that need no tensors and an engine that can be made to
// fail.
#include "pipeline/graph/block_graph.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <future>
#include <latch>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "pipeline/errors.h"
#include "storage/errors.h"
#include "storage/io/aligned_buffer.h"
#include "tests/support/temp_dir.h"

namespace coppice {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::IsSupersetOf;
using ::testing::Not;
using ::testing::UnorderedElementsAre;
using namespace std::chrono_literals;
using Done = std::function<void(std::exception_ptr)>;

constexpr uint64_t kSpanBytes = 64 << 10;

void copy_to_slot(const GraphSpan& span, const std::vector<StagedPiece>& pieces) {
  for (const StagedPiece& piece : pieces) {
    std::copy(piece.bytes.begin(), piece.bytes.end(),
              span.slot.begin() + int64_t(piece.slot_offset));
  }
}

std::byte content(uint64_t offset) { return std::byte(uint8_t(offset * 2654435761u >> 13)); }

// Passes reads on, tells the test of each, fails the one it is told to.
class SpyEngine final : public IoEngine {
 public:
  explicit SpyEngine(std::unique_ptr<IoEngine> engine) : engine_(std::move(engine)) {}
  std::string_view name() const override { return "spy"; }

  void submit(ReadBatch batch, ReadCompletion done) override {
    const uint64_t offset = batch.reads.front().offset;
    if (on_submit) on_submit(offset);
    if (offset == failing_offset) {
      const auto failure = std::make_exception_ptr(IoError("read", "shard", 5, offset, 1));
      engine_->submit(std::move(batch), [done = std::move(done), failure](ReadBatch b, auto) {
        done(std::move(b), failure);
      });
      return;
    }
    engine_->submit(std::move(batch), std::move(done));
  }

  std::function<void(uint64_t offset)> on_submit;
  uint64_t failing_offset = UINT64_MAX;

 private:
  std::unique_ptr<IoEngine> engine_;
};

class BlockGraphTest : public ::testing::Test {
 protected:
  static constexpr int kSpans = 7;

  BlockGraphTest() : engine_(make_io_engine({})) {
    const auto path = dir_ / "shard";
    std::ofstream out(path, std::ios::binary);
    for (uint64_t i = 0; i < kSpans * kSpanBytes; ++i) out.put(char(content(i)));
    out.close();
    file_ = std::make_unique<ReadFile>(path);
    files_ = {file_.get()};
    work_.num_spans = kSpans;
    work_.plan = [this](GraphSpan& span) {
      span.files = files_;
      span.name = "block " + std::to_string(span.index);
      const Extent extent{0, span.index * kSpanBytes, kSpanBytes};
      const uint64_t bytes = kSpans * kSpanBytes;
      ReadPlanOptions options;
      options.max_read_bytes = 16 << 10;
      span.plan = plan_reads({&extent, 1}, {&bytes, 1}, options);
    };
    work_.forward = [this](GraphSpan& span) { note("forward", span); };
    work_.adapt = [this](GraphSpan& span) { note("adapt", span); };
    work_.store = [this](GraphSpan& span) { note("store", span); };
  }

  GraphOptions options(int slots) {
    GraphOptions options;
    options.slab_bytes = 32 << 10;
    options.num_slabs = 2;
    for (int i = 0; i < slots; ++i)
      options.slots.push_back(memory_.emplace_back(kSpanBytes).span());
    options.outputs.push_back(memory_.emplace_back(4096).span());
    return options;
  }

  /// Memory of the slabs, from where what is wanted is copied to the slot.
  void add_slabs(GraphOptions& options) {
    for (int i = 0; i < options.num_slabs; ++i)
      options.slabs.push_back(memory_.emplace_back(options.slab_bytes).span());
    options.upload = [](const GraphSpan& span, const std::vector<StagedPiece>& pieces,
                        const Done& done) {
      copy_to_slot(span, pieces);
      done(nullptr);
    };
  }

  GraphResult run(GraphOptions options, SerialExecutor* adapter = nullptr) {
    BlockGraph graph(std::move(options), work_, engine_, {{device_, adapter}}, store_);
    graph_ = &graph;
    return graph.run();
  }

  /// `slots` on each of two devices, and an output for each.
  GraphOptions two_devices(int slots) {
    GraphOptions both = options(2 * slots);
    for (int slot = 0; slot < 2 * slots; ++slot) both.slot_devices.push_back(slot % 2);
    both.outputs.push_back(memory_.emplace_back(4096).span());
    both.advance = Advance::kAfterForward;
    return both;
  }

  GraphResult run_on_two_devices(GraphOptions options) {
    BlockGraph graph(std::move(options), work_, engine_, {{device_}, {second_}}, store_);
    return graph.run();
  }

  bool computes_past_a_waiting_adaptation(Advance advance, std::chrono::milliseconds patience);
  bool computes_beside_an_adaptation(Advance advance, SerialExecutor* adapter,
                                     std::chrono::milliseconds patience);

  void note(const std::string& step, const GraphSpan& span) {
    std::lock_guard lock(mutex_);
    steps_[step].push_back(span.index);
  }

  testing::TempDir dir_;
  std::unique_ptr<ReadFile> file_;
  std::vector<const ReadFile*> files_;
  std::vector<AlignedBuffer> memory_ = [] {
    std::vector<AlignedBuffer> v;
    v.reserve(16);
    return v;
  }();
  SpyEngine engine_;
  SerialExecutor device_{"device"}, second_{"second"};
  SerialExecutor store_{"store"};
  GraphWork work_;
  BlockGraph* graph_ = nullptr;
  std::mutex mutex_;
  std::map<std::string, std::vector<int>> steps_;
};

TEST_F(BlockGraphTest, EverySpanPassesEveryStepOnceInOrder) {
  const GraphResult result = run(options(2));
  EXPECT_EQ(result.retired, kSpans);
  EXPECT_EQ(result.skipped, 0);
  for (const char* step : {"forward", "adapt", "store"}) {
    EXPECT_THAT(steps_[step], ElementsAre(0, 1, 2, 3, 4, 5, 6)) << step;
  }
}

TEST_F(BlockGraphTest, ForwardSeesTheBytesOfTheFile) {
  int wrong = 0;
  work_.forward = [&](GraphSpan& span) {
    const std::byte* bytes = span.slot.data() + span.plan.placements[0].slot_offset;
    for (uint64_t i = 0; i < kSpanBytes; ++i)
      wrong += bytes[i] != content(span.index * kSpanBytes + i);
  };
  run(options(2));
  EXPECT_EQ(wrong, 0);
}

TEST_F(BlockGraphTest, NeverHoldsMoreSlotsAndSlabsThanPlanned) {
  for (const int slots : {1, 2, 3}) {
    const GraphResult result = run(options(slots));
    EXPECT_LE(result.most_slots_in_use, slots);
    EXPECT_LE(result.most_slabs_in_use, 2);
    EXPECT_EQ(result.retired, kSpans);
  }
}

// The compute of block 0 waits until the engine has seen a read of block 1: only a graph that reads
// ahead gets past it.
TEST_F(BlockGraphTest, NextBlockIsReadWhileThisOneComputes) {
  std::latch read_of_next(1);
  std::atomic<bool> seen = false;
  engine_.on_submit = [&](uint64_t offset) {
    if (offset >= kSpanBytes && !seen.exchange(true)) read_of_next.count_down();
  };
  work_.forward = [&](GraphSpan& span) {
    if (span.index == 0) read_of_next.wait();
  };
  EXPECT_EQ(run(options(2)).retired, kSpans);
}

TEST_F(BlockGraphTest, OneSlotReadsNothingAheadAndStillFinishes) {
  std::atomic<int> computing = -1;
  std::atomic<int> early = 0;
  engine_.on_submit = [&](uint64_t offset) {
    if (computing >= 0 && int(offset / kSpanBytes) != computing) ++early;
  };
  work_.forward = [&](GraphSpan& span) { computing = span.index; };
  work_.adapt = [&](GraphSpan&) { computing = -1; };
  EXPECT_EQ(run(options(1)).retired, kSpans);
  EXPECT_EQ(early, 0);
}

TEST_F(BlockGraphTest, AdvanceAfterAdaptKeepsTheNextForwardBehindThisAdaptation) {
  std::vector<std::string> order;
  work_.forward = [&](GraphSpan& span) { order.push_back("f" + std::to_string(span.index)); };
  work_.adapt = [&](GraphSpan& span) { order.push_back("a" + std::to_string(span.index)); };
  work_.num_spans = 3;
  run(options(2));
  EXPECT_THAT(order, ElementsAre("f0", "a0", "f1", "a1", "f2", "a2"));
}

// The device's thread is one, so the two differ only where an adaptation cannot start: span 1 has
// no output buffer while span 0 is being stored. Waits at most `patience` for the forward of
// span 2.
bool BlockGraphTest::computes_past_a_waiting_adaptation(Advance advance,
                                                        std::chrono::milliseconds patience) {
  std::promise<void> computed;
  std::future<void> third_forward = computed.get_future();
  bool in_time = false;
  work_.forward = [&](GraphSpan& span) {
    if (span.index == 2) computed.set_value();
  };
  work_.store = [&](GraphSpan& span) {
    if (span.index == 0) in_time = third_forward.wait_for(patience) == std::future_status::ready;
  };
  GraphOptions opts = options(3);
  opts.advance = advance;
  run(std::move(opts));
  return in_time;
}

TEST_F(BlockGraphTest, AdvanceAfterForwardComputesPastAWaitingAdaptation) {
  EXPECT_TRUE(computes_past_a_waiting_adaptation(Advance::kAfterForward, 20s));
}

TEST_F(BlockGraphTest, AdvanceAfterAdaptDoesNotComputePastAWaitingAdaptation) {
  // Correct however long it waits; the longer, the surer a graph that is not is found out.
  EXPECT_FALSE(computes_past_a_waiting_adaptation(Advance::kAfterAdapt, 100ms));
}

// The adaptation of span 0 goes on only when the forward of span 1 has begun; waits at most
// `patience` for it.
bool BlockGraphTest::computes_beside_an_adaptation(Advance advance, SerialExecutor* adapter,
                                                   std::chrono::milliseconds patience) {
  std::promise<void> begun;
  std::future<void> next_forward = begun.get_future();
  bool in_time = false;
  work_.forward = [&](GraphSpan& span) {
    if (span.index == 1) begun.set_value();
  };
  work_.adapt = [&](GraphSpan& span) {
    if (span.index == 0) in_time = next_forward.wait_for(patience) == std::future_status::ready;
  };
  GraphOptions opts = options(2);
  opts.advance = advance;
  run(std::move(opts), adapter);
  return in_time;
}

TEST_F(BlockGraphTest, ForwardOfTheNextRunsBesideAnAdaptationThatHasAThreadOfItsOwn) {
  SerialExecutor adapter("adapter");
  EXPECT_TRUE(computes_beside_an_adaptation(Advance::kAfterForward, &adapter, 20s));
}

// Both adaptations wait for each other: only two devices get past that, in whatever order.
TEST_F(BlockGraphTest, TwoDevicesAdaptAtOnce) {
  std::latch both(2);
  work_.adapt = [&](GraphSpan& span) {
    note("adapt", span);
    if (span.index < 2) both.arrive_and_wait();
  };
  const GraphResult result = run_on_two_devices(two_devices(2));
  EXPECT_EQ(result.retired, kSpans);
  EXPECT_THAT(steps_["forward"], ElementsAre(0, 1, 2, 3, 4, 5, 6));
  EXPECT_THAT(steps_["adapt"], UnorderedElementsAre(0, 1, 2, 3, 4, 5, 6));
  EXPECT_THAT(steps_["store"], UnorderedElementsAre(0, 1, 2, 3, 4, 5, 6));
}

TEST_F(BlockGraphTest, ASpanIsComputedOnTheThreadAndInTheSlotOfItsDevice) {
  GraphOptions opts = two_devices(2);
  std::map<const std::byte*, int> owner;
  for (size_t slot = 0; slot < opts.slots.size(); ++slot) {
    owner[opts.slots[slot].data()] = opts.slot_devices[slot];
  }
  std::array<std::thread::id, 2> threads;
  device_.run([&] { threads[0] = std::this_thread::get_id(); });
  second_.run([&] { threads[1] = std::this_thread::get_id(); });
  std::atomic<int> wrong = 0;
  work_.forward = work_.adapt = [&](GraphSpan& span) {
    wrong += owner.at(span.slot.data()) != span.device;
    wrong += threads[size_t(span.device)] != std::this_thread::get_id();
  };
  run_on_two_devices(std::move(opts));
  EXPECT_EQ(wrong, 0);
}

// One device is kept busy with span 0 until all others are done: the other one did them.
TEST_F(BlockGraphTest, ASlowDeviceDoesNotHoldTheOtherUp) {
  work_.num_spans = 4;
  std::latch others(2);  // spans 1 and 2; span 3 may be granted either slot
  std::vector<int> devices(4, -1);
  work_.adapt = [&](GraphSpan& span) {
    devices[size_t(span.index)] = span.device;
    if (span.index == 0) others.wait();
  };
  work_.store = [&](GraphSpan& span) {
    if (span.index == 1 || span.index == 2) others.count_down();
  };
  run_on_two_devices(two_devices(1));
  EXPECT_EQ(devices[0], 0);
  EXPECT_EQ(devices[1], 1);
  EXPECT_EQ(devices[2], 1);
}

TEST_F(BlockGraphTest, AFailureOnOneDeviceSkipsWhatComesBehindOnBoth) {
  work_.adapt = [&](GraphSpan& span) {
    if (span.index == 2) throw std::runtime_error("no");
    note("adapt", span);
  };
  EXPECT_THROW(run_on_two_devices(two_devices(2)), BlockError);
  EXPECT_THAT(steps_["store"], IsSupersetOf({0, 1}));  // what was before it is kept
  EXPECT_THAT(steps_["store"], Not(Contains(2)));
}

TEST_F(BlockGraphTest, ForwardAndAdaptationOnTheDevicesOwnThreadAreNeverAtOnce) {
  std::atomic<int> at_once = 0, most = 0;
  const auto work = [&](GraphSpan&) {
    most = std::max<int>(most, ++at_once);
    std::this_thread::sleep_for(1ms);  // correct without; the longer, the surer
    --at_once;
  };
  work_.forward = work_.adapt = work;
  GraphOptions opts = options(2);
  opts.advance = Advance::kAfterForward;
  run(std::move(opts));
  EXPECT_EQ(most, 1);
}

TEST_F(BlockGraphTest, AdvanceAfterAdaptNeverComputesBesideAnAdaptation) {
  SerialExecutor adapter("adapter");
  EXPECT_FALSE(computes_beside_an_adaptation(Advance::kAfterAdapt, &adapter, 100ms));
}

TEST_F(BlockGraphTest, AdvanceAfterForwardKeepsEveryStepInOrder) {
  GraphOptions opts = options(3);
  opts.advance = Advance::kAfterForward;
  run(std::move(opts));
  for (const char* step : {"forward", "adapt", "store"}) {
    EXPECT_THAT(steps_[step], ElementsAre(0, 1, 2, 3, 4, 5, 6)) << step;
  }
}

TEST_F(BlockGraphTest, WithoutAdaptTheGraphEndsAfterForward) {
  work_.adapt = nullptr;
  work_.store = nullptr;
  EXPECT_EQ(run(options(2)).retired, kSpans);
  EXPECT_THAT(steps_["forward"], ElementsAre(0, 1, 2, 3, 4, 5, 6));
}

TEST_F(BlockGraphTest, ASpanWithoutReadsPassesToo) {
  const auto plan = work_.plan;
  work_.plan = [&](GraphSpan& span) {
    plan(span);
    if (span.index % 2 == 1) span.plan = {};
  };
  EXPECT_EQ(run(options(2)).retired, kSpans);
}

TEST_F(BlockGraphTest, FailedReadNamesBlockAndKeepsTheCause) {
  engine_.failing_offset = 3 * kSpanBytes;
  try {
    run(options(2));
    FAIL() << "nothing was thrown";
  } catch (const BlockError& error) {
    EXPECT_THAT(error.what(), HasSubstr("block 3, read"));
    EXPECT_THROW(std::rethrow_if_nested(error), IoError);
  }
  EXPECT_THAT(steps_["store"], ElementsAre(0, 1, 2));
}

class BlockGraphFailure : public BlockGraphTest,
                          public ::testing::WithParamInterface<const char*> {};

// An exception in any step with reads outstanding: no hang, what was before it is stored, nothing
// after.
TEST_P(BlockGraphFailure, InOneStepLeavesTheSpansBeforeItStored) {
  const std::string failing = GetParam();
  const auto failing_step = [&, this](const std::string& step) {
    return [&, step, this](GraphSpan& span) {
      if (step == failing && span.index == 2) throw std::runtime_error("on purpose");
      note(step, span);
    };
  };
  const auto plan = work_.plan;
  work_.plan = [&](GraphSpan& span) {
    plan(span);
    if (failing == "plan" && span.index == 2) throw std::runtime_error("on purpose");
  };
  work_.forward = failing_step("forward");
  work_.adapt = failing_step("adapt");
  work_.store = failing_step("store");
  try {
    run(options(2));
    FAIL() << "nothing was thrown";
  } catch (const BlockError& error) {
    EXPECT_THAT(error.what(), HasSubstr("2, " + failing));
  }
  EXPECT_THAT(steps_["store"], ElementsAre(0, 1));
}
INSTANTIATE_TEST_SUITE_P(Steps, BlockGraphFailure,
                         ::testing::Values("plan", "forward", "adapt", "store"));

TEST_F(BlockGraphTest, StopFinishesTheAdaptationAtWorkAndSkipsTheRest) {
  work_.adapt = [&](GraphSpan& span) {
    if (span.index == 2) graph_->stop();
    note("adapt", span);
  };
  const GraphResult result = run(options(2));
  EXPECT_EQ(result.retired, kSpans);
  EXPECT_EQ(result.skipped, kSpans - 3);
  EXPECT_THAT(steps_["store"], ElementsAre(0, 1, 2));
}

TEST_F(BlockGraphTest, ReadsGoThroughSlabsAndUploadWhereSlotsAreNotHostMemory) {
  GraphOptions opts = options(2);
  add_slabs(opts);
  std::atomic<int> uploads = 0;
  opts.upload = [&](const GraphSpan& span, const std::vector<StagedPiece>& pieces,
                    const Done& done) {
    copy_to_slot(span, pieces);
    ++uploads;
    done(nullptr);
  };
  int wrong = 0;
  work_.forward = [&](GraphSpan& span) {
    const std::byte* bytes = span.slot.data() + span.plan.placements[0].slot_offset;
    for (uint64_t i = 0; i < kSpanBytes; ++i)
      wrong += bytes[i] != content(span.index * kSpanBytes + i);
  };
  EXPECT_EQ(run(std::move(opts)).retired, kSpans);
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(uploads, kSpans * 2);
}

// A GPU's products want their operands at multiples of 16 bytes; files have them anywhere.
TEST_F(BlockGraphTest, WhatIsUploadedIsAlignedInItsSlot) {
  GraphOptions opts = options(2);
  add_slabs(opts);
  constexpr uint64_t kFirst = 5000, kSize = 20'002;
  work_.plan = [this](GraphSpan& span) {
    span.files = files_;
    const uint64_t begin = span.index * kSpanBytes, all = kSpans * kSpanBytes;
    const Extent wanted[] = {{0, begin + kFirst, kSize}, {0, begin + kFirst + kSize, kSize}};
    span.plan = plan_reads(wanted, {&all, 1}, {.max_read_bytes = 16 << 10});
  };
  std::atomic<int> wrong = 0;
  work_.forward = [&](GraphSpan& span) {
    for (uint64_t tensor = 0; tensor < 2; ++tensor) {
      const uint64_t offset = span.plan.placements[tensor].slot_offset;
      wrong += offset % 16 != 0;
      for (uint64_t i = 0; i < kSize; ++i) {
        wrong +=
            span.slot[offset + i] != content(span.index * kSpanBytes + kFirst + tensor * kSize + i);
      }
    }
  };
  EXPECT_EQ(run(std::move(opts)).retired, kSpans);
  EXPECT_EQ(wrong, 0);
}

// As a copy stream's do, on threads of its own.
TEST_F(BlockGraphTest, AnUploadMayEndAfterTheOnesBehindIt) {
  GraphOptions opts = options(2);
  add_slabs(opts);
  SerialExecutor slow("slow"), fast("fast");
  std::latch second(1);
  opts.upload = [&](const GraphSpan& span, const std::vector<StagedPiece>& pieces,
                    const Done& done) {
    const bool is_first = span.index == 0 && pieces.front().slot_offset == 0;
    const bool is_second = span.index == 0 && !is_first;
    (is_first ? slow : fast).post([&second, is_first, is_second, done] {
      if (is_first) second.wait();
      done(nullptr);
      if (is_second) second.count_down();
    });
  };
  EXPECT_EQ(run(std::move(opts)).retired, kSpans);
  EXPECT_THAT(steps_["forward"], ElementsAre(0, 1, 2, 3, 4, 5, 6));
}

// Proved by a latch: the first span is computed until the second one is on the device.
TEST_F(BlockGraphTest, TheNextSpanIsUploadedWhileOneIsComputed) {
  GraphOptions opts = options(2);
  add_slabs(opts);
  SerialExecutor copies("copies");
  std::latch uploaded(2);  // slabs of the second span
  opts.upload = [&](const GraphSpan& span, const std::vector<StagedPiece>&, const Done& done) {
    copies.post([&uploaded, index = span.index, done] {
      if (index == 1) uploaded.count_down();
      done(nullptr);
    });
  };
  work_.forward = [&](GraphSpan& span) {
    if (span.index == 0) uploaded.wait();
  };
  EXPECT_EQ(run(std::move(opts)).retired, kSpans);
}

TEST_F(BlockGraphTest, AnUploadThatFailsNamesItsSpanAndSkipsTheOnesBehind) {
  GraphOptions opts = options(2);
  add_slabs(opts);
  opts.upload = [&](const GraphSpan& span, const std::vector<StagedPiece>&, const Done& done) {
    done(span.index == 3 ? std::make_exception_ptr(std::runtime_error("lost")) : nullptr);
  };
  try {
    run(std::move(opts));
    ADD_FAILURE() << "went on";
  } catch (const BlockError& error) {
    EXPECT_STREQ(error.what(), "block 3, upload");
  }
  EXPECT_THAT(steps_["store"], ElementsAre(0, 1, 2));
}

TEST_F(BlockGraphTest, AReadLargerThanASlabsMemoryIsSplit) {
  GraphOptions opts = options(2);
  opts.slab_bytes = 8 << 10;  // reads have 16 KiB
  add_slabs(opts);
  std::atomic<int> wrong = 0;
  work_.forward = [&](GraphSpan& span) {
    const std::byte* bytes = span.slot.data() + span.plan.placements[0].slot_offset;
    for (uint64_t i = 0; i < kSpanBytes; ++i)
      wrong += bytes[i] != content(span.index * kSpanBytes + i);
  };
  EXPECT_EQ(run(std::move(opts)).retired, kSpans);
  EXPECT_EQ(wrong, 0);
}

// Its messages still hold tokens when the graph is taken apart.
TEST_F(BlockGraphTest, AStarvedGraphSaysSo) {
  GraphOptions starved = options(2);
  starved.num_slabs = 0;
  EXPECT_THROW(run(std::move(starved)), std::logic_error);
}

TEST_F(BlockGraphTest, APlanLargerThanASlotIsRefused) {
  GraphOptions opts = options(2);
  for (auto& slot : opts.slots) slot = slot.first(kSpanBytes / 2);
  EXPECT_THROW(run(std::move(opts)), BlockError);
  EXPECT_THAT(steps_["forward"], IsEmpty());
}

}  // namespace
}  // namespace coppice
