// What a trace tells of the activation cache: which window, and who waited for it.
#pragma once

#include <string>

#include "pipeline/graph/cached_activations.h"
#include "pipeline/telemetry/trace.h"

namespace coppice {

/// "dense.12 window 3"
inline std::string name_of(Boundary boundary, int window) {
  return to_string(boundary) + " window " + std::to_string(window);
}

/// The user's thread waits while this lives.
class CacheWait {
 public:
  template <typename Name>
  CacheWait(RunMeters& meters, CacheUser& user, Name name)
      : all_(meters.waits), own_(user.waits), slice_(meters.trace, Track::kWaits, name) {}

 private:
  Stopwatch all_, own_;
  TraceSlice slice_;
};

}  // namespace coppice
