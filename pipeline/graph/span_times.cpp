#include "pipeline/graph/span_times.h"

#include <algorithm>

namespace coppice {

double seconds_between(SpanTimes::Time begin, SpanTimes::Time end) {
  const SpanTimes::Time never;
  if (begin == never || end == never || end < begin) return 0;
  return std::chrono::duration<double>(end - begin).count();
}

// A stamp that never came is the smallest, so the later of several leaves it out by itself.
SpanWaits waits_of(const SpanTimes& times) {
  return {
      .compute_for_weights = seconds_between(
          std::max({times.free_for_forward, times.inputs_there, times.slot_granted}),
          times.reads_end),
      .compute_for_shard_buffer =
          seconds_between(std::max(times.free_for_adapt, times.forward_end), times.output_granted),
      .reads_for_slot = seconds_between(times.reads_idle_since, times.slot_granted),
  };
}

SpanSeconds seconds_of(const SpanTimes& times) {
  return {.read = seconds_between(times.reads_begin, times.reads_end),
          .forward = seconds_between(times.forward_begin, times.forward_end),
          .adapt = seconds_between(times.adapt_begin, times.adapt_end)};
}

}  // namespace coppice
