// An I/O engine that counts bytes and the time during which anything was in flight.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>

#include "pipeline/telemetry/meter.h"
#include "storage/io/io_engine.h"

namespace coppice {

class MeteredEngine final : public IoEngine {
 public:
  MeteredEngine(std::unique_ptr<IoEngine> engine, Meter& meter)
      : meter_(meter), engine_(std::move(engine)) {}

  std::string_view name() const override { return engine_->name(); }

  Registration register_long_lived(const LongLived& what) override {
    return engine_->register_long_lived(what);
  }

  void submit(ReadBatch batch, ReadCompletion done) override {
    for (const Read& read : batch.reads) meter_.add_bytes(read.into.size());
    begin();
    engine_->submit(std::move(batch),
                    [this, done = std::move(done)](ReadBatch finished, std::exception_ptr failure) {
                      end();
                      done(std::move(finished), failure);
                    });
  }

 private:
  using Clock = std::chrono::steady_clock;

  void begin() {
    std::lock_guard lock(mutex_);
    if (in_flight_++ == 0) busy_since_ = Clock::now();
  }
  void end() {
    std::lock_guard lock(mutex_);
    if (--in_flight_ == 0) {
      meter_.add_seconds(std::chrono::duration<double>(Clock::now() - busy_since_).count());
    }
  }

  Meter& meter_;
  std::mutex mutex_;
  int in_flight_ = 0;
  Clock::time_point busy_since_;
  std::unique_ptr<IoEngine> engine_;  // last: destroyed first, while completions may still count
};

}  // namespace coppice
