// From made-up stamps to waits: each wait is the time in which nothing else was missing.
#include "pipeline/graph/span_times.h"

#include <gtest/gtest.h>

namespace coppice {
namespace {

using namespace std::chrono_literals;

SpanTimes::Time at(std::chrono::milliseconds since_start) {
  return SpanTimes::Time(1h + since_start);
}

// Everything is there when it is wanted: read while the span before was computed.
SpanTimes nobody_waits() {
  SpanTimes times;
  times.reads_idle_since = at(10ms);
  times.slot_granted = at(10ms);
  times.reads_begin = at(11ms);
  times.reads_end = at(50ms);
  times.inputs_there = at(100ms);
  times.free_for_forward = at(100ms);
  times.forward_begin = at(101ms);
  times.forward_end = at(200ms);
  times.output_granted = at(200ms);
  times.free_for_adapt = at(200ms);
  times.adapt_begin = at(201ms);
  times.adapt_end = at(400ms);
  times.store_begin = at(401ms);
  return times;
}

TEST(SpanTimes, NobodyWaitsWhereEverythingIsThereInTime) {
  const SpanWaits waits = waits_of(nobody_waits());
  EXPECT_EQ(waits.compute_for_weights, 0);
  EXPECT_EQ(waits.compute_for_shard_buffer, 0);
  EXPECT_EQ(waits.reads_for_slot, 0);
}

TEST(SpanTimes, SecondsOfAStepAreFromItsBeginToItsEnd) {
  const SpanSeconds seconds = seconds_of(nobody_waits());
  EXPECT_DOUBLE_EQ(seconds.read, 0.039);
  EXPECT_DOUBLE_EQ(seconds.forward, 0.099);
  EXPECT_DOUBLE_EQ(seconds.adapt, 0.199);
}

TEST(SpanTimes, LateWeightsAreWaitedForFromWhenInputsAndThreadWereThere) {
  SpanTimes times = nobody_waits();
  times.reads_end = at(130ms);
  EXPECT_DOUBLE_EQ(waits_of(times).compute_for_weights, 0.030);
  times.free_for_forward = at(110ms);
  EXPECT_DOUBLE_EQ(waits_of(times).compute_for_weights, 0.020);
  times.inputs_there = at(125ms);
  EXPECT_DOUBLE_EQ(waits_of(times).compute_for_weights, 0.005);
}

TEST(SpanTimes, AThreadThatIsBusyDoesNotWaitForWeights) {
  SpanTimes times = nobody_waits();
  times.reads_end = at(130ms);
  times.free_for_forward = at(150ms);
  EXPECT_EQ(waits_of(times).compute_for_weights, 0);
}

TEST(SpanTimes, WeightsAreNotWaitedForBeforeTheirSlotWasThere) {
  SpanTimes times = nobody_waits();
  times.slot_granted = at(120ms);
  times.reads_end = at(130ms);
  EXPECT_DOUBLE_EQ(waits_of(times).compute_for_weights, 0.010);
}

TEST(SpanTimes, TheFirstSpanWaitsForAllItsReads) {
  SpanTimes times = nobody_waits();
  times.inputs_there = at(0ms);
  times.free_for_forward = {};
  EXPECT_DOUBLE_EQ(waits_of(times).compute_for_weights, 0.040);
}

TEST(SpanTimes, AShardBufferIsWaitedForOnceTheForwardIsDoneAndTheThreadFree) {
  SpanTimes times = nobody_waits();
  times.output_granted = at(260ms);
  EXPECT_DOUBLE_EQ(waits_of(times).compute_for_shard_buffer, 0.060);
  times.free_for_adapt = at(250ms);  // with a thread of its own: the adaptation before ran on
  EXPECT_DOUBLE_EQ(waits_of(times).compute_for_shard_buffer, 0.010);
  times.free_for_adapt = {};
  EXPECT_DOUBLE_EQ(waits_of(times).compute_for_shard_buffer, 0.060);
}

TEST(SpanTimes, ReadsWaitForASlotFromWhenNothingBeforeWasLeftToRead) {
  SpanTimes times = nobody_waits();
  times.slot_granted = at(35ms);
  EXPECT_DOUBLE_EQ(waits_of(times).reads_for_slot, 0.025);
}

TEST(SpanTimes, StepsThatNeverCameTakeNoTime) {
  const SpanWaits waits = waits_of({});
  const SpanSeconds seconds = seconds_of({});
  EXPECT_EQ(waits.compute_for_weights + waits.compute_for_shard_buffer + waits.reads_for_slot, 0);
  EXPECT_EQ(seconds.read + seconds.forward + seconds.adapt, 0);

  SpanTimes only_forwarded = nobody_waits();
  only_forwarded.output_granted = only_forwarded.adapt_begin = only_forwarded.adapt_end = {};
  EXPECT_EQ(waits_of(only_forwarded).compute_for_shard_buffer, 0);
  EXPECT_EQ(seconds_of(only_forwarded).adapt, 0);
}

}  // namespace
}  // namespace coppice
