// Threads that take a read, do it and finish it.
#include "storage/io/pread_engine.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "storage/io/read_progress.h"  // short reads, retries and file ends
#include "storage/io/read_queue.h"     // order, bytes in flight, completions

namespace coppice {
namespace {

class PreadEngine final : public IoEngine {
 public:
  explicit PreadEngine(const IoEngineOptions& options) : queue_(options.max_bytes_in_flight) {
    const uint32_t num_threads = std::max<uint32_t>(options.pread_threads, 1);
    try {
      for (uint32_t i = 0; i < num_threads; ++i) {
        threads_.emplace_back([this]() noexcept { run(); });
      }
    } catch (...) {  // no more threads to be had: those started must not outlive the queue
      stop();
      throw;
    }
  }
  ~PreadEngine() override { stop(); }

  std::string_view name() const override { return "pread"; }
  void submit(ReadBatch batch, ReadCompletion done) override {
    queue_.push(std::move(batch), std::move(done));
  }

 private:
  void run() {
    while (auto ticket = queue_.take()) {
      std::exception_ptr failure;
      try {
        read_blocking(*ticket->read);
      } catch (...) {
        failure = std::current_exception();
      }
      queue_.finish(std::move(*ticket), std::move(failure));
    }
  }

  void stop() {
    queue_.close();
    for (std::thread& thread : threads_) thread.join();
  }

  ReadQueue queue_;
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<IoEngine> make_pread_engine(const IoEngineOptions& options) {
  return std::make_unique<PreadEngine>(options);
}

}  // namespace coppice
