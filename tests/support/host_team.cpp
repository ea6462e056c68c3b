#include "tests/support/host_team.h"

#include <fmt/format.h>
#include <ucontext.h>

#include <cstddef>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <vector>

namespace coppice::testing {
namespace {

constexpr size_t kStackBytes = size_t{64} << 10;

/// Runs the threads as coroutines of the calling thread: no schedule but the one asked for.
class Scheduler {
 public:
  Scheduler(const Launch& launch, int64_t team, const std::function<void(const HostTeam&)>& kernel)
      : launch_(launch), team_(team), kernel_(kernel), coroutines_(launch.num_threads) {}

  void run() {
    for (Coroutine& coroutine : coroutines_) prepare(coroutine);
    while (true) {
      for (int turn = 0; turn < launch_.num_threads; ++turn) resume(thread_of(turn));
      int num_ended = 0, num_true = 0;
      for (const Coroutine& coroutine : coroutines_) {
        num_ended += coroutine.has_ended;
        num_true += coroutine.flag;
      }
      if (num_ended == launch_.num_threads) return;
      if (num_ended != 0) {
        throw std::logic_error(
            fmt::format("team {}: {} of {} threads ended, the others are waiting", team_, num_ended,
                        launch_.num_threads));
      }
      num_true_ = num_true;
    }
  }

 private:
  struct Coroutine {
    ucontext_t context;
    std::unique_ptr<std::byte[]> stack;
    bool flag = false;
    bool has_ended = false;
  };

  int thread_of(int turn) const {
    return launch_.order == ThreadOrder::kAscending ? turn : launch_.num_threads - 1 - turn;
  }

  void prepare(Coroutine& coroutine) {
    coroutine.stack = std::make_unique_for_overwrite<std::byte[]>(kStackBytes);
    getcontext(&coroutine.context);
    coroutine.context.uc_stack.ss_sp = coroutine.stack.get();
    coroutine.context.uc_stack.ss_size = kStackBytes;
    coroutine.context.uc_link = &scheduler_;
    makecontext(&coroutine.context, &Scheduler::enter, 0);
  }

  void resume(int thread) {
    running_ = this;
    running_thread_ = thread;
    swapcontext(&scheduler_, &coroutines_[thread].context);
  }

  // makecontext hands on integers only, hence the static members.
  static void enter() {
    Scheduler& self = *running_;
    const int thread = running_thread_;
    self.kernel_(HostTeam(self.launch_, self.team_, thread, self.barrier_));
    self.coroutines_[thread].has_ended = true;
  }

  int wait(int thread, bool flag) {
    coroutines_[thread].flag = flag;
    swapcontext(&coroutines_[thread].context, &scheduler_);
    return num_true_;
  }

  static thread_local Scheduler* running_;
  static thread_local int running_thread_;

  const Launch& launch_;
  const int64_t team_;
  const std::function<void(const HostTeam&)>& kernel_;
  const detail::Barrier barrier_ = [this](int thread, bool flag) { return wait(thread, flag); };
  std::vector<Coroutine> coroutines_;
  ucontext_t scheduler_;
  int num_true_ = 0;
};

thread_local Scheduler* Scheduler::running_ = nullptr;
thread_local int Scheduler::running_thread_ = 0;

}  // namespace

void PrintTo(const Launch& launch, std::ostream* out) {
  *out << launch.num_teams << " teams of " << launch.num_threads << " threads, "
       << (launch.order == ThreadOrder::kAscending ? "ascending" : "descending");
}

void run_team(const Launch& launch, int64_t team,
              const std::function<void(const HostTeam&)>& kernel) {
  Scheduler(launch, team, kernel).run();
}

}  // namespace coppice::testing
