// When what happened to a span on its way through the graph, and who waited for whom.
#pragma once

#include <chrono>

namespace coppice {

/// Stamped by the graph as a span passes; each is valid once the step it names is behind the span,
/// and stays at the clock's epoch for a step that never came.
struct SpanTimes {
  using Clock = std::chrono::steady_clock;
  using Time = Clock::time_point;

  Time reads_idle_since;  // the last read before; slot_granted if some are left, or none were
  Time slot_granted;      // and its reads planned from here on
  Time reads_begin;       // its first slab goes to the engine; slot_granted where nothing is read
  Time reads_end;         // its last slab has arrived, uploaded where that is needed
  Time inputs_there;      // the span before has made what this one's forward starts from
  Time free_for_forward;  // the thread of forward ended the step before
  Time forward_begin, forward_end;
  Time output_granted;  // a buffer for its shard
  Time free_for_adapt;  // the thread of adapt ended the step before
  Time adapt_begin, adapt_end;
  Time store_begin;
};

/// Seconds in which one thing stood still for another, of one span. Stamps alone: what the thread
/// waited for inside a step (activations) its owner must tell.
struct SpanWaits {
  /// The thread of forward was free and the inputs were there, the weights were not: from the later
  /// of free_for_forward, inputs_there and slot_granted to reads_end. The first span's reads, with
  /// which nothing can overlap, count in full.
  double compute_for_weights = 0;
  /// The thread of adapt was free and the forward done, every output buffer was still being stored:
  /// from the later of free_for_adapt and forward_end to output_granted.
  double compute_for_shard_buffer = 0;
  /// Everything before was read and no slot was free: reads_idle_since to slot_granted. The price
  /// of few slots, and no harm as long as compute_for_weights is nothing.
  double reads_for_slot = 0;
};

/// Seconds a step of one span took, waits inside it included.
struct SpanSeconds {
  double read = 0;  // first slab to last; other spans' reads may lie between
  double forward = 0;
  double adapt = 0;
};

SpanWaits waits_of(const SpanTimes& times);
SpanSeconds seconds_of(const SpanTimes& times);

/// Seconds from `begin` to `end`; 0 if that is negative or one of them never came.
double seconds_between(SpanTimes::Time begin, SpanTimes::Time end);

}  // namespace coppice
