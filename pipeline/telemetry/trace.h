// A run as a timeline: a file in Chrome's JSON trace format, which ui.perfetto.dev opens.
#pragma once

#include <chrono>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "storage/io/file.h"  // UniqueFd

namespace coppice {

/// Rows of the timeline, from above.
enum class Track {
  kReads,
  kUpload,
  kDownload,
  kDecode,
  kCompute,
  kWaits,
  kEncode,
  kCacheWrites,
  kShardWrites
};

/// Collects events of any thread and appends them to the file every few thousand, or every second
/// in which something happens: memory is bounded, and a killed run leaves a file that loads, cut
/// off at most in its last line. Times are microseconds since the trace was opened, of one steady
/// clock. Outlives whoever holds a pointer to it; a null pointer means that nothing is traced.
///
/// The format is the "JSON Array Format" of "Trace Event Format" (Chromium): an array of events,
/// whose closing bracket may lack.
class Trace {
 public:
  using Clock = std::chrono::steady_clock;

  /// The first event makes or replaces the file: a command that is refused, or that finds nothing
  /// to do, leaves an earlier one's. Throws IoError where no file could be made. A write that is
  /// refused later ends the trace, not the run: `note` is told once, on the thread at hand, and
  /// must not come back here.
  explicit Trace(std::filesystem::path path, std::function<void(const std::string&)> note = {});
  ~Trace();  // writes what is left and the bracket, if something happened
  Trace(const Trace&) = delete;
  Trace& operator=(const Trace&) = delete;

  /// Something that others of its kind overlap, and that may end on another thread. `begin` gives
  /// what `end` is called with, once, under the same name. `facts`: an object, shown beside it.
  uint64_t begin(Track track, std::string_view name, const nlohmann::json& facts);
  void end(Track track, std::string_view name, uint64_t id);

  // For TraceSlice.
  int enter(Track track);
  void leave(Track track, int lane, std::string_view name, Clock::time_point since);

 private:
  // A track has as many lanes as threads were at work on it at once, so that what lies in a lane is
  // nested or apart.
  struct Lane {
    std::thread::id owner;
    int depth = 0;
  };

  void name_lane(Track track, int lane);
  void append(const nlohmann::json& event);
  void add_line(const nlohmann::json& event);
  void flush();
  void refuse(const char* operation);

  std::filesystem::path path_;
  std::function<void(const std::string&)> note_;
  UniqueFd file_;  // none before the first event
  Clock::time_point origin_ = Clock::now();
  std::mutex mutex_;  // of all below
  std::vector<std::vector<Lane>> lanes_;
  std::string unwritten_;
  int unwritten_events_ = 0;
  Clock::time_point flushed_ = origin_;
  uint64_t next_id_ = 1;
  bool is_empty_ = true;
  int refusal_ = 0;  // errno of the write that ended the trace
};

/// Null where `path` is empty.
std::unique_ptr<Trace> make_trace(const std::filesystem::path& path,
                                  std::function<void(const std::string&)> note);

/// One piece of work on this thread, from construction to destruction: slices of one thread and
/// track are nested. Costs one branch where `trace` is null.
class TraceSlice {
 public:
  TraceSlice(Trace* trace, Track track, std::string_view name) : trace_(trace), track_(track) {
    if (trace_ != nullptr) start(std::string(name));
  }
  /// `make_name` is called only where something is traced.
  template <std::invocable MakeName>
  TraceSlice(Trace* trace, Track track, MakeName make_name) : trace_(trace), track_(track) {
    if (trace_ != nullptr) start(make_name());
  }
  ~TraceSlice() {
    if (trace_ != nullptr) trace_->leave(track_, lane_, name_, since_);
  }
  TraceSlice(const TraceSlice&) = delete;
  TraceSlice& operator=(const TraceSlice&) = delete;

 private:
  void start(std::string name) {
    name_ = std::move(name);
    lane_ = trace_->enter(track_);
    since_ = Trace::Clock::now();
  }

  Trace* trace_;
  Track track_;
  int lane_ = 0;
  std::string name_;
  Trace::Clock::time_point since_;
};

}  // namespace coppice
