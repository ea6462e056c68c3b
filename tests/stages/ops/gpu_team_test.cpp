// The host's stand-in for a GPU's threads finds what a GPU would not forgive.
#include "stages/ops/gpu_team.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <stdexcept>
#include <vector>

#include "tests/support/host_team.h"

namespace coppice {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using testing::HostTeam;
using testing::Launch;
using testing::run_kernel;
using testing::ThreadOrder;

constexpr ThreadOrder kOrders[] = {ThreadOrder::kAscending, ThreadOrder::kDescending};

struct Nothing {};

struct Cells {
  int cell[8];
};

/// Each thread fills its cell and reads its neighbour's: needs the barrier.
std::vector<int> neighbours(bool has_barrier, ThreadOrder order) {
  std::vector<int> seen(8);
  run_kernel<Cells>({1, 8, order}, [&](const HostTeam& team, Cells& shared) {
    shared.cell[team.thread()] = team.thread();
    if (has_barrier) team.sync();
    seen[team.thread()] = shared.cell[(team.thread() + 1) % team.num_threads()];
  });
  return seen;
}

TEST(HostTeam, BehindABarrierEveryThreadSeesWhatAllWrote) {
  for (const ThreadOrder order : kOrders) {
    EXPECT_THAT(neighbours(true, order), ElementsAre(1, 2, 3, 4, 5, 6, 7, 0));
  }
}

TEST(HostTeam, AMissingBarrierShowsInOneOfTheOrders) {
  EXPECT_NE(neighbours(false, ThreadOrder::kAscending), neighbours(true, ThreadOrder::kAscending));
  EXPECT_NE(neighbours(false, ThreadOrder::kDescending),
            neighbours(true, ThreadOrder::kDescending));
}

TEST(HostTeam, ABarrierThatSomeThreadsMissIsAnError) {
  const auto kernel = [](const HostTeam& team, Nothing&) {
    if (team.thread() != 2) team.sync();
  };
  for (const ThreadOrder order : kOrders) {
    EXPECT_THROW(run_kernel<Nothing>({1, 4, order}, kernel), std::logic_error);
  }
}

TEST(HostTeam, CountsFlagsAfreshAtEveryBarrier) {
  std::vector<int> counts;
  run_kernel<Nothing>({1, 6, ThreadOrder::kDescending}, [&](const HostTeam& team, Nothing&) {
    const int even = team.sync_count(team.thread() % 2 == 0);
    const int first = team.sync_count(team.thread() == 0);
    team.sync();
    const int none = team.sync_count(false);
    counts.insert(counts.end(), {even, first, none});
  });
  ASSERT_EQ(counts.size(), 18u);
  for (size_t i = 0; i < counts.size(); i += 3) {
    EXPECT_THAT((std::vector<int>(counts.begin() + i, counts.begin() + i + 3)),
                ElementsAre(3, 1, 0));
  }
}

TEST(HostTeam, EveryThreadOfEveryTeamRunsOnce) {
  const Launch launch{5, 7, ThreadOrder::kAscending};
  std::vector<int> runs(35);
  gpu::Count sum = 0;
  run_kernel<Nothing>(launch, [&](const HostTeam& team, Nothing&) {
    EXPECT_EQ(team.num_teams(), 5);
    ++runs[team.team() * team.num_threads() + team.thread()];
    team.add(&sum, gpu::Count{2});
  });
  EXPECT_THAT(runs, Each(1));
  EXPECT_EQ(sum, 70u);
}

TEST(HostTeam, SharedMemoryIsGarbageAtFirst) {
  run_kernel<Cells>({2, 1, ThreadOrder::kAscending}, [](const HostTeam&, Cells& shared) {
    EXPECT_THAT(shared.cell, Each(-1));
    shared.cell[3] = 0;
  });
}

TEST(GpuTeam, FiniteIsWhatIsNeitherNanNorInfinite) {
  using Limits = std::numeric_limits<float>;
  for (const float value : {0.0f, -0.0f, Limits::max(), Limits::lowest(), Limits::denorm_min()}) {
    EXPECT_TRUE(gpu::is_finite(value)) << value;
  }
  for (const float value : {Limits::infinity(), -Limits::infinity(), Limits::quiet_NaN()}) {
    EXPECT_FALSE(gpu::is_finite(value)) << value;
  }
}

}  // namespace
}  // namespace coppice
