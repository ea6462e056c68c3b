// One lock around the line of batches; completions are called outside it.
#include "storage/io/read_queue.h"

#include <algorithm>
#include <cerrno>
#include <utility>

#include "storage/errors.h"

namespace coppice {

struct ReadQueue::Batch {
  Batch(ReadBatch wanted, ReadCompletion completion)
      : batch(std::move(wanted)),
        done(std::move(completion)),
        urgency(batch.urgency),
        num_reads(batch.reads.size()) {}

  bool all_started() const { return next == num_reads; }

  /// Lets what is in flight end; nothing further starts. The first failure is the one reported.
  void give_up(std::exception_ptr why) {
    if (failure == nullptr) failure = std::move(why);
    next = num_reads;
  }

  /// True once: to whoever hears it falls the call of `complete`.
  bool claim_completion() {
    return all_started() && in_flight == 0 && !std::exchange(completed, true);
  }

  /// noexcept: a completion that throws has broken its contract, and no thread could go on safely.
  void complete() noexcept {
    const ReadCompletion call = std::move(done);
    call(std::move(batch), std::exchange(failure, nullptr));
  }

  ReadBatch batch;
  ReadCompletion done;
  const Urgency urgency;
  // Counted once: a failed batch may still wait in line when its completion, outside the lock, has
  // taken `batch` away.
  const size_t num_reads;
  size_t next = 0;  // first read not started
  size_t in_flight = 0;
  std::exception_ptr failure;
  bool completed = false;
};

namespace {

std::exception_ptr shut_down(const Read& read) noexcept {
  try {
    throw IoError("read not started, the engine is shutting down", read.file->path().string(),
                  ECANCELED, read.offset, read.into.size());
  } catch (...) {
    return std::current_exception();
  }
}

}  // namespace

void ReadQueue::push(ReadBatch batch, ReadCompletion done) {
  auto entry = std::make_shared<Batch>(std::move(batch), std::move(done));
  {
    const std::lock_guard lock(mutex_);
    auto place = waiting_.end();
    if (entry->urgency == Urgency::kNow) {
      place = std::find_if(waiting_.begin(), waiting_.end(),
                           [](const auto& other) { return other->urgency != Urgency::kNow; });
    }
    waiting_.insert(place, std::move(entry));
  }
  changed_.notify_all();
}

bool ReadQueue::fits(const Read& read) const {
  return bytes_in_flight_ == 0 || (bytes_in_flight_ <= max_bytes_in_flight_ &&
                                   read.into.size() <= max_bytes_in_flight_ - bytes_in_flight_);
}

bool ReadQueue::work_to_take() const {
  if (closed_) return true;
  if (waiting_.empty()) return false;
  const Batch& front = *waiting_.front();
  return front.all_started() || fits(front.batch.reads[front.next]);
}

std::optional<ReadQueue::Ticket> ReadQueue::take_locked(std::unique_lock<std::mutex>& lock) {
  while (!waiting_.empty()) {
    const std::shared_ptr<Batch> front = waiting_.front();
    if (closed_ && !front->all_started()) {
      front->give_up(shut_down(front->batch.reads[front->next]));
    }
    if (front->all_started()) {  // given up, or a batch without reads
      waiting_.pop_front();
      if (front->claim_completion()) {
        lock.unlock();
        front->complete();
        lock.lock();
      }
      continue;
    }
    const Read& read = front->batch.reads[front->next];
    if (!fits(read)) return std::nullopt;
    ++front->next;
    ++front->in_flight;
    bytes_in_flight_ += read.into.size();
    if (front->all_started()) waiting_.pop_front();
    return Ticket{front, &read};
  }
  return std::nullopt;
}

std::optional<ReadQueue::Ticket> ReadQueue::try_take() {
  std::unique_lock lock(mutex_);
  return take_locked(lock);
}

std::optional<ReadQueue::Ticket> ReadQueue::take() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return work_to_take(); });
    std::optional<Ticket> ticket = take_locked(lock);
    if (ticket.has_value() || (closed_ && waiting_.empty())) return ticket;
  }
}

void ReadQueue::finish(Ticket ticket, std::exception_ptr failure) noexcept {
  bool last = false;
  {
    const std::lock_guard lock(mutex_);
    bytes_in_flight_ -= ticket.read->into.size();
    --ticket.batch->in_flight;
    if (failure != nullptr) ticket.batch->give_up(std::move(failure));
    last = ticket.batch->claim_completion();
  }
  changed_.notify_all();
  if (last) ticket.batch->complete();
}

void ReadQueue::close() {
  {
    const std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
}

bool ReadQueue::closed() const {
  const std::lock_guard lock(mutex_);
  return closed_;
}

bool ReadQueue::drained() const {
  const std::lock_guard lock(mutex_);
  return closed_ && waiting_.empty();
}

}  // namespace coppice
