#include "pipeline/telemetry/trace.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <nlohmann/json.hpp>

#include "pipeline/telemetry/json_text.h"
#include "storage/errors.h"  // IoError

namespace coppice {
namespace {

using nlohmann::json;

constexpr int kEventsPerWrite = 4096;
constexpr auto kLongestUnwritten = std::chrono::seconds(1);
constexpr int kLanesPerTrack = 100;  // tids are track · kLanesPerTrack + lane + 1

const char* name_of(Track track) {
  switch (track) {
    case Track::kReads:
      return "reads in flight";
    case Track::kUpload:
      return "upload";
    case Track::kDownload:
      return "download";
    case Track::kDecode:
      return "codec decode";
    case Track::kCompute:
      return "compute";
    case Track::kWaits:
      return "waits for activations";
    case Track::kEncode:
      return "codec encode";
    case Track::kCacheWrites:
      return "cache writes";
    case Track::kShardWrites:
      return "shard writes";
  }
  return "";
}

int tid_of(Track track, int lane) { return int(track) * kLanesPerTrack + lane + 1; }

json metadata(const char* what, int tid, const json& args) {
  return {{"ph", "M"}, {"name", what}, {"pid", 1}, {"tid", tid}, {"args", args}};
}

double microseconds(Trace::Clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

// Perfetto shows what overlaps among the rows of its process only where the id says that it is.
json of_this_process(uint64_t id) { return {{"local", fmt::format("{:#x}", id)}}; }

void require_can_be_made(const std::filesystem::path& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored) || !path.has_filename()) {
    throw IoError("create trace", path.string(), EISDIR);
  }
  if (::access(path.c_str(), W_OK) == 0) return;
  if (errno != ENOENT) throw IoError("create trace", path.string(), errno);
  const std::filesystem::path parent = path.has_parent_path() ? path.parent_path() : ".";
  if (::access(parent.c_str(), W_OK | X_OK) != 0) {
    throw IoError("create trace", path.string(), errno);
  }
}

}  // namespace

Trace::Trace(std::filesystem::path path, std::function<void(const std::string&)> note)
    : path_(std::move(path)), note_(std::move(note)) {
  require_can_be_made(path_);
}

Trace::~Trace() {
  std::lock_guard lock(mutex_);
  if (is_empty_) return;
  unwritten_ += "\n]\n";
  flush();
}

uint64_t Trace::begin(Track track, std::string_view name, const json& facts) {
  const double now = microseconds(Clock::now() - origin_);
  std::lock_guard lock(mutex_);
  name_lane(track, 0);
  const uint64_t id = next_id_++;
  append({{"ph", "b"},
          {"cat", name_of(track)},
          {"name", name},
          {"id2", of_this_process(id)},
          {"pid", 1},
          {"tid", tid_of(track, 0)},
          {"ts", now},
          {"args", facts}});
  return id;
}

void Trace::end(Track track, std::string_view name, uint64_t id) {
  const double now = microseconds(Clock::now() - origin_);
  std::lock_guard lock(mutex_);
  append({{"ph", "e"},
          {"cat", name_of(track)},
          {"name", name},
          {"id2", of_this_process(id)},
          {"pid", 1},
          {"tid", tid_of(track, 0)},
          {"ts", now}});
}

// The lane this thread is in already, else the first that is free.
int Trace::enter(Track track) {
  const std::thread::id self = std::this_thread::get_id();
  std::lock_guard lock(mutex_);
  name_lane(track, 0);
  std::vector<Lane>& lanes = lanes_[size_t(track)];
  int lane = -1;
  for (int i = 0; i < int(lanes.size()); ++i) {
    const Lane& seen = lanes[size_t(i)];
    if (seen.depth > 0 && seen.owner == self) {
      lane = i;
      break;
    }
    if (seen.depth == 0 && lane < 0) lane = i;
  }
  if (lane < 0) {
    lane = int(lanes.size());
    name_lane(track, lane);
  }
  lanes[size_t(lane)].owner = self;
  ++lanes[size_t(lane)].depth;
  return lane;
}

// The end is taken before the lane is free, and the next slice's begin after: they cannot overlap.
void Trace::leave(Track track, int lane, std::string_view name, Clock::time_point since) {
  const Clock::time_point now = Clock::now();
  std::lock_guard lock(mutex_);
  --lanes_[size_t(track)][size_t(lane)].depth;
  append({{"ph", "X"},
          {"cat", name_of(track)},
          {"name", name},
          {"pid", 1},
          {"tid", tid_of(track, lane)},
          {"ts", microseconds(since - origin_)},
          {"dur", microseconds(now - since)}});
}

// Makes the lane, once; only tracks that are used appear.
void Trace::name_lane(Track track, int lane) {
  if (lanes_.size() <= size_t(track)) lanes_.resize(size_t(track) + 1);
  std::vector<Lane>& lanes = lanes_[size_t(track)];
  if (lanes.size() > size_t(lane)) return;
  lanes.resize(size_t(lane) + 1);
  const int tid = tid_of(track, lane);
  const std::string name =
      lane == 0 ? name_of(track) : fmt::format("{} {}", name_of(track), lane + 1);
  append(metadata("thread_name", tid, {{"name", name}}));
  append(metadata("thread_sort_index", tid, {{"sort_index", tid}}));
}

void Trace::append(const json& event) {
  if (refusal_ != 0) return;
  if (is_empty_) add_line(metadata("process_name", 0, {{"name", "coppice"}}));
  add_line(event);
  if (++unwritten_events_ >= kEventsPerWrite || Clock::now() - flushed_ >= kLongestUnwritten) {
    flush();
  }
}

// The separator comes before an event, so that what is in the file always ends with one.
void Trace::add_line(const json& event) {
  unwritten_ += is_empty_ ? "[\n" : ",\n";
  is_empty_ = false;
  unwritten_ += json_text(event);
}

void Trace::flush() {
  if (refusal_ == 0 && file_.get() < 0) {
    file_ = UniqueFd(::open(path_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
    if (file_.get() < 0) refuse("create trace");
  }
  size_t written = 0;
  while (refusal_ == 0 && written < unwritten_.size()) {
    const ssize_t count =
        ::write(file_.get(), unwritten_.data() + written, unwritten_.size() - written);
    if (count > 0) {
      written += size_t(count);
    } else if (count < 0 && errno != EINTR) {
      refuse("write trace");
    }
  }
  unwritten_.clear();
  unwritten_events_ = 0;
  flushed_ = Clock::now();
}

// What failed last ends the trace.
void Trace::refuse(const char* operation) {
  refusal_ = errno;
  const IoError error(operation, path_.string(), refusal_);
  if (note_) note_(fmt::format("{}; the run goes on without it", error.what()));
}

std::unique_ptr<Trace> make_trace(const std::filesystem::path& path,
                                  std::function<void(const std::string&)> note) {
  return path.empty() ? nullptr : std::make_unique<Trace>(path, std::move(note));
}

}  // namespace coppice
