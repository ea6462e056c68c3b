// An I/O engine that counts bytes and the time during which anything was in flight, and puts each
// batch on the timeline.
#pragma once

#include <chrono>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>

#include "pipeline/telemetry/meter.h"
#include "pipeline/telemetry/trace.h"
#include "storage/io/io_engine.h"

namespace coppice {

class MeteredEngine final : public IoEngine {
 public:
  /// `trace` may be null.
  MeteredEngine(std::unique_ptr<IoEngine> engine, Meter& meter, Trace* trace)
      : meter_(meter), trace_(trace), engine_(std::move(engine)) {}

  std::string_view name() const override { return engine_->name(); }

  Registration register_long_lived(const LongLived& what) override {
    return engine_->register_long_lived(what);
  }

  void submit(ReadBatch batch, ReadCompletion done) override {
    for (const Read& read : batch.reads) meter_.add_bytes(read.into.size());
    begin();
    const uint64_t traced =
        trace_ == nullptr ? 0 : trace_->begin(Track::kReads, "read", facts_of(batch));
    engine_->submit(std::move(batch), [this, traced, done = std::move(done)](
                                          ReadBatch finished, std::exception_ptr failure) {
      end();
      if (trace_ != nullptr) trace_->end(Track::kReads, "read", traced);
      done(std::move(finished), failure);
    });
  }

 private:
  using Clock = std::chrono::steady_clock;

  static nlohmann::json facts_of(const ReadBatch& batch) {
    uint64_t bytes = 0;
    for (const Read& read : batch.reads) bytes += read.into.size();
    const Read& first = batch.reads.front();
    return {{"file", first.file->path().filename().string()},
            {"offset", first.offset},
            {"bytes", bytes}};
  }

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
  Trace* trace_;
  std::mutex mutex_;
  int in_flight_ = 0;
  Clock::time_point busy_since_;
  std::unique_ptr<IoEngine> engine_;  // last: destroyed first, while completions may still count
};

}  // namespace coppice
