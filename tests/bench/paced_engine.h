// A disk of a known rate: what a shared disk does from one second to the next is not what is
// measured.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <thread>
#include <utility>

#include "pipeline/graph/serial_executor.h"
#include "storage/io/io_engine.h"

namespace coppice {

/// Completes batches in the order they arrive, none before a disk of `rate` (bytes a second) had
/// read it. `engine` does the reading, should be faster, and must outlive this.
class PacedEngine final : public IoEngine {
 public:
  PacedEngine(IoEngine& engine, double rate) : engine_(engine), rate_(rate) {}
  std::string_view name() const override { return engine_.name(); }
  Registration register_long_lived(const LongLived& what) override {
    return engine_.register_long_lived(what);
  }

  void submit(ReadBatch batch, ReadCompletion done) override {
    double bytes = 0;
    for (const Read& read : batch.reads) bytes += double(read.into.size());
    const Clock::time_point submitted = Clock::now();
    engine_.submit(std::move(batch), [this, bytes, submitted, done = std::move(done)](
                                         ReadBatch read, std::exception_ptr failure) {
      auto held = std::make_shared<ReadBatch>(std::move(read));
      completions_.post([this, bytes, submitted, done, held, failure] {
        const auto seconds = std::chrono::duration<double>(bytes / rate_);
        free_ = std::max(free_, submitted) + std::chrono::duration_cast<Clock::duration>(seconds);
        std::this_thread::sleep_until(free_);
        done(std::move(*held), failure);
      });
    });
  }

 private:
  using Clock = std::chrono::steady_clock;

  IoEngine& engine_;
  const double rate_;
  Clock::time_point free_{};  // when the disk has done all before; on the executor's thread only
  SerialExecutor completions_{"paced"};
};

}  // namespace coppice
