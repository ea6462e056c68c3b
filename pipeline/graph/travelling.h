// What travels through the graph, and the threads it meets: for block_graph.cpp alone.
#pragma once

#include <cstddef>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "pipeline/graph/block_graph.h"
#include "pipeline/graph/serial_executor.h"
#include "pipeline/graph/span_times.h"
#include "pipeline/graph/token_pool.h"
#include "storage/io/read_plan.h"  // SlabRange, Move

namespace coppice::detail {

// A span with what only the graph itself needs to know of it.
struct Travelling {
  GraphSpan span;
  TokenLease slot;
  TokenLease output;
  std::vector<SlabRange> slabs;
  std::vector<Move> moves;  // from slabs to the slot, where slabs are memory
  size_t slabs_left = 0;    // touched by the serial node `ready` alone
};
using SpanPtr = std::shared_ptr<Travelling>;

// The inputs of a span are there, and since when.
struct Inputs {
  int index = 0;
  SpanTimes::Time since;
};

// Since when nothing is left to read of the slabs cut so far. Any thread.
class UnreadSlabs {
 public:
  void add(size_t slabs) {
    std::lock_guard lock(mutex_);
    count_ += slabs;
  }
  void remove_one(SpanTimes::Time now) {
    std::lock_guard lock(mutex_);
    --count_;
    since_ = now;
  }
  /// `now` where something is left, or nothing was ever read.
  SpanTimes::Time none_since(SpanTimes::Time now) const {
    std::lock_guard lock(mutex_);
    return count_ > 0 || since_ == SpanTimes::Time{} ? now : since_;
  }

 private:
  mutable std::mutex mutex_;
  size_t count_ = 0;
  SpanTimes::Time since_;
};

// Where forward or adapt runs. `free_since` is touched on that thread alone.
struct ComputeThread {
  SerialExecutor& executor;
  SpanTimes::Time free_since = {};
};

struct DeviceThreads {
  explicit DeviceThreads(const GraphDevice& device) : own{device.thread} {
    if (device.adapter != nullptr) adapter.emplace(ComputeThread{*device.adapter});
  }
  ComputeThread& forwards() { return own; }
  ComputeThread& adapts() { return adapter ? *adapter : own; }

  ComputeThread own;
  std::optional<ComputeThread> adapter;
};

struct Slab {
  SpanPtr owner;
  SlabRange range;
  TokenLease token;
  std::exception_ptr failure;
  const char* step = "read";  // that failed
  bool is_there = false;      // in the slot
};
using SlabPtr = std::shared_ptr<Slab>;

}  // namespace coppice::detail
