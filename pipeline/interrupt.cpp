#include "pipeline/interrupt.h"

#include <atomic>
#include <csignal>

#include "pipeline/graph/block_graph.h"

namespace coppice {
namespace {

std::atomic<BlockGraph*> interruptible = nullptr;  // a handler can be reached no other way

std::atomic<bool> was_requested = false;

void on_signal(int) {
  was_requested = true;
  if (BlockGraph* graph = interruptible) graph->stop();
}

void install(void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

InterruptGuard::InterruptGuard(Earlier earlier) {
  if (earlier == Earlier::kForget) was_requested = false;
  install(on_signal, SA_RESTART | int(SA_RESETHAND));
}

InterruptGuard::InterruptGuard(BlockGraph& graph) : InterruptGuard(Earlier::kForget) {
  interruptible = &graph;
}

bool InterruptGuard::requested() { return was_requested; }

InterruptGuard::~InterruptGuard() {
  install(SIG_DFL, 0);
  interruptible = nullptr;
}

}  // namespace coppice
