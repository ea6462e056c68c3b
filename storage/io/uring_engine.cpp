// One thread prepares, submits and reaps; other threads reach it through the queue and an eventfd.
#include "storage/io/uring_engine.h"

#include <fmt/format.h>
#include <liburing.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cassert>
#include <cerrno>
#include <cstring>
#include <future>
#include <optional>
#include <thread>
#include <utility>

#include "storage/errors.h"
#include "storage/io/errands.h"        // registrations reach the ring's thread
#include "storage/io/read_progress.h"  // short reads, retries and file ends
#include "storage/io/read_queue.h"     // order, bytes in flight, completions

namespace coppice {
namespace {

// Newer than the oldest kernel headers we build with; the kernel answers EINVAL where it is older.
constexpr unsigned kClamp = 1U << 4;          // IORING_SETUP_CLAMP, 5.6
constexpr unsigned kSingleIssuer = 1U << 12;  // IORING_SETUP_SINGLE_ISSUER, 6.0
constexpr unsigned kDeferTaskrun = 1U << 13;  // IORING_SETUP_DEFER_TASKRUN, 6.1
constexpr std::array kFlagsBestFirst{kClamp | kSingleIssuer | kDeferTaskrun, kClamp | kSingleIssuer,
                                     kClamp};

constexpr uint32_t kMaxDepth = 4096;      // more than drives serve at once, fewer than rings hold
constexpr uint64_t kWake = ~uint64_t{0};  // user_data of the wake-up; reads carry their slot

/// The ring and the reads in it. One thread creates and runs it: with a single issuer the kernel
/// refuses every other.
class ReadRing {
 public:
  ReadRing(ReadQueue& queue, Errands& errands, int wake_fd, uint32_t depth, RingCalls calls)
      : queue_(queue),
        errands_(errands),
        wake_fd_(wake_fd),
        setup_(std::move(calls.setup)),
        tables_(std::move(calls.tell)),
        slots_(std::clamp<uint32_t>(depth, 1, kMaxDepth)) {
    again_.reserve(slots_.size());
    for (size_t slot = slots_.size(); slot-- > 0;) free_slots_.push_back(slot);
  }
  ~ReadRing() {
    if (created_) io_uring_queue_exit(&ring_);
  }
  ReadRing(const ReadRing&) = delete;
  ReadRing& operator=(const ReadRing&) = delete;

  /// 0 or -errno.
  int create() {
    int result = -EINVAL;
    for (size_t i = 0; i < kFlagsBestFirst.size() && result == -EINVAL; ++i) {
      io_uring_params params{};
      params.flags = flags_ = kFlagsBestFirst[i];
      // One entry more than slots: the wake-up never takes the place of a read.
      result = setup_(static_cast<unsigned>(slots_.size() + 1), &ring_, &params);
    }
    created_ = result >= 0;
    if (created_) tables_.attach(static_cast<unsigned>(ring_.ring_fd));
    return result;
  }

  bool defers_task_work() const { return (flags_ & kDeferTaskrun) != 0; }
  RingTables& tables() { return tables_; }  // for errands

  // The protocol: EINTR, EAGAIN and short reads go back in before anything new starts. A batch
  // completes when the last of its reads has been reaped, never earlier. Closing the queue wakes
  // the thread, which stops arming the wake-up, fails what has not started and leaves when the
  // kernel holds none of our memory.
  void run() {
    while (outstanding() > 0 || !queue_.drained()) {
      // Entries the kernel has not taken yet hold indices into the tables that errands change.
      if (io_uring_sq_ready(&ring_) == 0) errands_.do_waiting();
      prepare();  // fill free queue entries, resubmissions first
      submit();   // one system call
      reap();     // short reads go back to `again_`
    }
    errands_.close();
  }

 private:
  struct Slot {
    ReadQueue::Ticket ticket;
    std::optional<ReadProgress> progress;
  };

  size_t outstanding() const { return slots_.size() - free_slots_.size() + (wake_armed_ ? 1 : 0); }

  void prepare() {
    if (!wake_armed_ && !queue_.closed()) arm_wake();
    for (const size_t slot : again_) prepare_slot(slot);
    again_.clear();
    while (!free_slots_.empty()) {
      std::optional<ReadQueue::Ticket> ticket = queue_.try_take();
      if (!ticket.has_value()) return;
      const size_t slot = free_slots_.back();
      free_slots_.pop_back();
      slots_[slot].progress.emplace(*ticket->read);
      slots_[slot].ticket = std::move(*ticket);
      if (slots_[slot].progress->done()) {
        finish(slot);  // an empty read needs no kernel
      } else {
        prepare_slot(slot);
      }
    }
  }

  void prepare_slot(size_t slot) {
    const ReadProgress& progress = *slots_[slot].progress;
    const std::span<std::byte> into = progress.into();
    const auto bytes = static_cast<unsigned>(into.size());
    io_uring_sqe* sqe = next_entry();
    if (const std::optional<unsigned> buffer = tables_.buffer_of(into)) {
      io_uring_prep_read_fixed(sqe, progress.fd(), into.data(), bytes, progress.offset(),
                               static_cast<int>(*buffer));
    } else {
      io_uring_prep_read(sqe, progress.fd(), into.data(), bytes, progress.offset());
    }
    if (const std::optional<unsigned> file = tables_.file_of(progress.fd())) {
      sqe->fd = static_cast<int>(*file);
      io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
    }
    io_uring_sqe_set_data64(sqe, slot);
  }

  void arm_wake() {
    io_uring_sqe* sqe = next_entry();
    io_uring_prep_read(sqe, wake_fd_, &wake_count_, sizeof wake_count_, 0);
    io_uring_sqe_set_data64(sqe, kWake);
    wake_armed_ = true;
  }

  io_uring_sqe* next_entry() {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    assert(sqe != nullptr && "the ring has an entry for every slot and the wake-up");
    return sqe;
  }

  void submit() {
    if (outstanding() == 0) return;
    const int result = io_uring_submit_and_wait(&ring_, 1);
    // EAGAIN and EBUSY ask for completions to be reaped first; entries not taken stay queued.
    if (result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY) return;
    // Only a bug of ours gets here, and the kernel may still write to memory we could never reap:
    // run() is noexcept for its caller, so this ends the process with the message.
    throw IoError("io_uring_enter", "io_uring", -result);
  }

  void reap() {
    unsigned head = 0;
    unsigned num_seen = 0;
    io_uring_cqe* cqe = nullptr;
    io_uring_for_each_cqe(&ring_, head, cqe) {
      ++num_seen;
      if (cqe->user_data == kWake) {
        wake_armed_ = false;
        continue;
      }
      const size_t slot = cqe->user_data;
      slots_[slot].progress->take(cqe->res);
      if (slots_[slot].progress->done()) {
        finish(slot);
      } else {
        again_.push_back(slot);
      }
    }
    io_uring_cq_advance(&ring_, num_seen);
  }

  void finish(size_t slot) {
    std::exception_ptr failure = slots_[slot].progress->take_failure();
    ReadQueue::Ticket ticket = std::exchange(slots_[slot].ticket, {});
    slots_[slot].progress.reset();
    free_slots_.push_back(slot);
    queue_.finish(std::move(ticket), std::move(failure));
  }

  ReadQueue& queue_;
  Errands& errands_;
  const int wake_fd_;
  const RingSetup setup_;
  RingTables tables_;
  unsigned flags_ = 0;
  std::vector<Slot> slots_;
  std::vector<size_t> free_slots_;
  std::vector<size_t> again_;  // slots whose read goes on
  io_uring ring_{};
  bool created_ = false;
  bool wake_armed_ = false;
  uint64_t wake_count_ = 0;  // the kernel writes the event count here; nobody reads it
};

/// "ENOMEM", or a number where the library has no name for it.
std::string errno_name(int error_number) {
  const char* name = strerrorname_np(error_number);
  return name != nullptr ? name : fmt::format("errno {}", error_number);
}

class UringEngine final : public IoEngine {
 public:
  UringEngine(const IoEngineOptions& options, const RingCalls& calls)
      : on_fallback_(options.on_fallback),
        queue_(options.max_bytes_in_flight),
        wake_fd_(eventfd(0, EFD_CLOEXEC)),
        errands_(std::make_shared<Errands>([this] { wake(); })),
        ring_(queue_, *errands_, wake_fd_.get(), options.queue_depth, calls) {
    if (wake_fd_.get() < 0) throw IoError("eventfd", "io_uring", errno);
    std::promise<int> created;
    std::future<int> result = created.get_future();
    thread_ = std::thread([this, created = std::move(created)]() mutable noexcept {
      const int error = ring_.create();
      created.set_value(error);
      if (error >= 0) ring_.run();
    });
    const int error = result.get();
    if (error < 0) {
      thread_.join();
      throw IoError("creating a ring", "io_uring", -error);
    }
    if (!ring_.defers_task_work()) {
      tell(
          "io_uring without deferred task work (EINVAL; it came with Linux 6.1): reads cost more "
          "interrupts");
    }
  }

  ~UringEngine() override {
    queue_.close();
    wake();
    thread_.join();
  }

  std::string_view name() const override { return "io_uring"; }

  void submit(ReadBatch batch, ReadCompletion done) override {
    queue_.push(std::move(batch), std::move(done));
    wake();
  }

  Registration register_long_lived(const LongLived& what) override {
    assert(std::this_thread::get_id() != thread_.get_id() && "called from a completion");
    RingTables::Taken taken;
    errands_->run([&] { taken = ring_.tables().add(what); });
    tell_refusals(taken);
    Registration registration{taken.memory_bytes, taken.files, nullptr};
    if (taken.memory_bytes > 0 || taken.files > 0) {
      // The errands outlive the ring and know when it is gone, so the lease may outlive it too.
      const auto undo = [errands = errands_, ring = &ring_, owner = taken.owner](void*) noexcept {
        errands->run([ring, owner] { ring->tables().remove(owner); });
      };
      registration.lease = std::shared_ptr<void>(nullptr, undo);
    }
    return registration;
  }

 private:
  void wake() { eventfd_write(wake_fd_.get(), 1); }

  void tell(const std::string& fallback) const {
    if (on_fallback_) on_fallback_(fallback);
  }

  void tell_refusals(const RingTables::Taken& taken) {
    if (taken.memory_error != 0 && !told_memory_.exchange(true)) {
      tell(fmt::format("io_uring does not take memory for good ({}): it pins it at every read{}",
                       errno_name(taken.memory_error),
                       taken.memory_error == ENOMEM ? "; a higher `ulimit -l` helps" : ""));
    }
    if (taken.file_error != 0 && !told_files_.exchange(true)) {
      tell(fmt::format("io_uring does not take files for good ({}): it looks them up at every read",
                       errno_name(taken.file_error)));
    }
  }

  const std::function<void(const std::string&)> on_fallback_;
  std::atomic<bool> told_memory_ = false;
  std::atomic<bool> told_files_ = false;
  ReadQueue queue_;
  UniqueFd wake_fd_;
  std::shared_ptr<Errands> errands_;
  ReadRing ring_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<IoEngine> make_uring_engine(const IoEngineOptions& options) {
  return make_uring_engine(options, RingCalls{});
}

std::unique_ptr<IoEngine> make_uring_engine(const IoEngineOptions& options,
                                            const RingCalls& calls) {
  return std::make_unique<UringEngine>(options, calls);
}

}  // namespace coppice
