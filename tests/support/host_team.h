// The threads of a kernel's team (stages/ops/gpu_team.h), played on the host one after the other.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <iosfwd>
#include <type_traits>

namespace coppice::testing {

/// Between two barriers each thread runs as far as it can before the next one starts, in this
/// order. No GPU promises to do otherwise, and of two threads that need a barrier between them one
/// order or the other lets the wrong one go first: a kernel that lacks it computes something else.
enum class ThreadOrder { kAscending, kDescending };

/// How a kernel is launched. Any number of threads will do, also where a GPU takes warps.
struct Launch {
  int64_t num_teams = 1;
  int num_threads = 1;
  ThreadOrder order = ThreadOrder::kAscending;
};

/// What googletest says of one: "3 teams of 7 threads, descending".
void PrintTo(const Launch& launch, std::ostream* out);

namespace detail {
/// What happens at a barrier. Returns for how many of the team's threads `flag` was true.
using Barrier = std::function<int(int thread, bool flag)>;
}  // namespace detail

/// What gpu_team.h says of a team.
class HostTeam {
 public:
  HostTeam(const Launch& launch, int64_t team, int thread, const detail::Barrier& barrier)
      : launch_(launch), team_(team), thread_(thread), barrier_(barrier) {}

  int thread() const { return thread_; }
  int num_threads() const { return launch_.num_threads; }
  int64_t team() const { return team_; }
  int64_t num_teams() const { return launch_.num_teams; }
  void sync() const { barrier_(thread_, false); }
  int sync_count(bool flag) const { return barrier_(thread_, flag); }
  template <typename T>
  void add(T* sum, T value) const {
    *sum += value;  // only one thread runs at a time
  }

 private:
  const Launch& launch_;
  int64_t team_;
  int thread_;
  const detail::Barrier& barrier_;
};

/// Calls `kernel` as every thread of one team. Throws std::logic_error if some threads end while
/// others wait at a barrier: on a GPU that hangs, or worse. `kernel` must not throw.
void run_team(const Launch& launch, int64_t team,
              const std::function<void(const HostTeam&)>& kernel);

/// Calls `kernel(team, shared)` as every thread of every team, one team after the other. `Shared`
/// is the team's shared memory: NaN, negative or true wherever nothing was written.
template <typename Shared, typename Kernel>
void run_kernel(const Launch& launch, const Kernel& kernel) {
  static_assert(std::is_trivial_v<Shared>, "shared memory is not constructed");
  for (int64_t team = 0; team < launch.num_teams; ++team) {
    Shared shared;
    std::memset(&shared, 0xFF, sizeof shared);
    run_team(launch, team, [&](const HostTeam& host_team) { kernel(host_team, shared); });
  }
}

}  // namespace coppice::testing
