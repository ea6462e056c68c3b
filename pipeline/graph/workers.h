// How many threads oneTBB may use for graph and codec.
#pragma once

#include <tbb/global_control.h>

#include <algorithm>
#include <cstddef>
#include <thread>

namespace coppice {

/// While it lives, at least four workers may run: an arena alone does not give them on two cores,
/// and with one, codec and graph would wait for each other.
inline tbb::global_control enough_workers() {
  return tbb::global_control(tbb::global_control::max_allowed_parallelism,
                             std::max<size_t>(4, std::thread::hardware_concurrency()));
}

}  // namespace coppice
