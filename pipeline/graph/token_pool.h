// A fixed set of tokens that the graph hands out; a lease brings its token back.
#pragma once

#include <tbb/flow_graph.h>

#include <algorithm>
#include <atomic>
#include <utility>

namespace coppice {

/// Tokens are the indices [0, size) of buffers somebody else owns. They wait in a queue_node, so
/// that a reserving join takes one only together with the message that needs it.
class TokenPool {
 public:
  TokenPool(tbb::flow::graph& graph, int size) : queue_(graph), size_(size) {}

  /// Call once, after the edges are made.
  void fill() {
    for (int token = 0; token < size_; ++token) queue_.try_put(token);
  }
  /// From here on nobody asks for tokens: leases that are still in messages are let go of while the
  /// graph is taken apart, and nothing may be put into it then.
  void close() { closed_ = true; }
  tbb::flow::queue_node<int>& node() { return queue_; }
  int most_in_use() const { return most_in_use_; }

  // For TokenLease.
  void taken() {
    const int now = ++in_use_;
    int seen = most_in_use_;
    while (now > seen && !most_in_use_.compare_exchange_weak(seen, now)) {
    }
  }
  void put_back(int token) {
    --in_use_;
    if (!closed_) queue_.try_put(token);
  }

 private:
  tbb::flow::queue_node<int> queue_;
  int size_;
  bool closed_ = false;  // set when the graph is idle
  std::atomic<int> in_use_ = 0;
  std::atomic<int> most_in_use_ = 0;
};

/// Owns one token; gives it back when destroyed or reset, once.
class TokenLease {
 public:
  TokenLease() = default;
  TokenLease(TokenPool& pool, int token) : pool_(&pool), token_(token) { pool.taken(); }
  ~TokenLease() { reset(); }
  TokenLease(TokenLease&& other) noexcept
      : pool_(std::exchange(other.pool_, nullptr)), token_(other.token_) {}
  TokenLease& operator=(TokenLease&& other) noexcept {
    if (this != &other) {
      reset();
      pool_ = std::exchange(other.pool_, nullptr);
      token_ = other.token_;
    }
    return *this;
  }
  void reset() {
    if (TokenPool* pool = std::exchange(pool_, nullptr)) pool->put_back(token_);
  }
  int token() const { return token_; }

 private:
  TokenPool* pool_ = nullptr;
  int token_ = -1;
};

}  // namespace coppice
