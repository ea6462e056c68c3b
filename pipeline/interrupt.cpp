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

// What asks a run to stop: a terminal that goes away does, too.
constexpr int kSignals[] = {SIGINT, SIGTERM, SIGHUP};

// One that whoever started us ignores (nohup) stays ignored.
void install(void (*handler)(int), int flags) {
  struct sigaction action {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  for (const int signal : kSignals) {
    struct sigaction before {};
    sigaction(signal, nullptr, &before);
    if (before.sa_handler != SIG_IGN) sigaction(signal, &action, nullptr);
  }
}

void listen(InterruptGuard::Earlier earlier) {
  if (earlier == InterruptGuard::Earlier::kForget) was_requested = false;
  install(on_signal, SA_RESTART | int(SA_RESETHAND));
}

}  // namespace

InterruptGuard::InterruptGuard(Earlier earlier) { listen(earlier); }

InterruptGuard::InterruptGuard(BlockGraph& graph) {
  interruptible = &graph;  // before a signal can come
  listen(Earlier::kForget);
}

bool InterruptGuard::requested() { return was_requested; }

InterruptGuard::~InterruptGuard() {
  install(SIG_DFL, 0);
  interruptible = nullptr;
}

}  // namespace coppice
