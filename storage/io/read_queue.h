// The reads an engine has accepted: their order, the bytes in flight, and one completion per batch.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>

#include "storage/io/io_engine.h"

namespace coppice {

/// First in, first out, urgent batches before all others. A batch one of whose reads fails starts
/// no further read. Any thread. Completions are called outside the lock, on the thread that takes
/// or finishes, exactly once.
class ReadQueue {
 public:
  struct Batch;  // opaque: what a ticket keeps alive
  /// Permission to start one read. Every ticket must be finished.
  struct Ticket {
    std::shared_ptr<Batch> batch;
    const Read* read = nullptr;
  };

  /// A read larger than the bound starts when nothing else is in flight.
  explicit ReadQueue(uint64_t max_bytes_in_flight) : max_bytes_in_flight_(max_bytes_in_flight) {}

  void push(ReadBatch batch, ReadCompletion done);

  /// The next read, or nothing if none may start now.
  std::optional<Ticket> try_take();
  /// Waits for the next read; nothing once the queue is closed and empty.
  std::optional<Ticket> take();
  /// `failure` null: the read's bytes have arrived.
  void finish(Ticket ticket, std::exception_ptr failure) noexcept;

  /// From now on no read starts: batches with reads not started fail with IoError (ECANCELED), on
  /// the threads that still take.
  void close();
  bool closed() const;
  /// Closed, and no batch waits for a thread to take.
  bool drained() const;

 private:
  bool fits(const Read& read) const;
  bool work_to_take() const;
  std::optional<Ticket> take_locked(std::unique_lock<std::mutex>& lock);

  const uint64_t max_bytes_in_flight_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::shared_ptr<Batch>> waiting_;  // batches with reads not started
  uint64_t bytes_in_flight_ = 0;
  bool closed_ = false;
};

}  // namespace coppice
