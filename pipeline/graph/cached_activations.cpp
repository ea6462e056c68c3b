#include "pipeline/graph/cached_activations.h"

#include <algorithm>
#include <utility>

#include "pipeline/graph/cache_trace.h"
#include "pipeline/graph/cached_sink.h"
#include "pipeline/graph/cached_source.h"

namespace coppice {

CachedBoundaries::CachedBoundaries(CacheOptions options, IoEngine& engine, SerialExecutor& hdf5,
                                   RunMeters& meters,
                                   std::function<void(Boundary, const FileRecord&)> on_durable)
    : options_(std::move(options)),
      engine_(engine),
      hdf5_(hdf5),
      meters_(meters),
      on_durable_(std::move(on_durable)),
      behind_(std::make_shared<Quota>(options_.windows_behind)),
      codec_(options_.codec_threads, /*reserved_for_masters=*/0) {}

CachedBoundaries::~CachedBoundaries() {
  std::map<Boundary, std::shared_future<void>> written;
  {
    std::lock_guard lock(mutex_);
    written = written_;
  }
  for (auto& [boundary, future] : written) future.wait();
}

std::filesystem::path CachedBoundaries::path_of(Boundary boundary) const {
  return options_.directory / (to_string(boundary) + ".h5");
}

std::unique_ptr<ActivationSource> CachedBoundaries::source(Boundary boundary, CacheUser& user) {
  {
    const CacheWait wait(meters_, user, [&] { return to_string(boundary) + " durable"; });
    if (const std::shared_future<void> there = readable(boundary); there.valid()) there.get();
  }
  return std::make_unique<Source>(*this, boundary, user);
}

std::unique_ptr<ActivationSink> CachedBoundaries::sink(Boundary boundary, CacheUser& user) {
  if (unwanted_ && unwanted_(boundary)) return nullptr;
  return std::make_unique<Sink>(*this, boundary, user);
}

std::shared_future<void> CachedBoundaries::readable(Boundary boundary) {
  std::lock_guard lock(mutex_);
  for (const auto* futures : {&in_memory_, &written_}) {
    const auto found = futures->find(boundary);
    if (found != futures->end()) return found->second;
  }
  return {};
}

std::optional<std::string> CachedBoundaries::fault_of(Boundary boundary) {
  std::optional<std::string> fault;
  hdf5_.run([&] {
    try {
      ActivationCacheReader(path_of(boundary)).verify();
    } catch (const std::runtime_error& error) {
      fault = error.what();
    }
  });
  return fault;
}

void CachedBoundaries::wait_durable(Boundary boundary) {
  std::shared_future<void> future;
  {
    std::lock_guard lock(mutex_);
    const auto found = written_.find(boundary);
    if (found == written_.end()) return;
    future = found->second;
  }
  future.get();
}

int64_t CachedBoundaries::windows_in_ram(Boundary boundary) const {
  const int64_t wanted =
      boundary.is_inside_a_block() ? options_.targets_in_ram : options_.inputs_in_ram;
  return std::min(wanted, options_.shape.windows);
}

int64_t CachedBoundaries::first_in_file(Boundary boundary) const {
  return boundary.is_inside_a_block() ? windows_in_ram(boundary) : 0;
}

void CachedBoundaries::forget(Boundary boundary) {
  std::lock_guard lock(mutex_);
  kept_.erase(boundary);
  in_memory_.erase(boundary);
}

void CachedBoundaries::expire(Boundary boundary) {
  forget(boundary);
  std::error_code ignored;  // an undeleted file costs space, not correctness
  std::filesystem::remove(path_of(boundary), ignored);
}

}  // namespace coppice
