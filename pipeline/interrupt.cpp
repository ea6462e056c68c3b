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

int num_guards = 0;  // that live

}  // namespace

// After a signal the default effect is back: an inner guard does not take it away.
InterruptGuard::InterruptGuard() {
  if (num_guards++ > 0) return;
  was_requested = false;
  install(on_signal, SA_RESTART | int(SA_RESETHAND));
}

InterruptGuard::InterruptGuard(BlockGraph& graph) : InterruptGuard() {
  interruptible = &graph;
  if (was_requested) graph.stop();  // it came before there was a graph
}

bool InterruptGuard::requested() { return was_requested; }

InterruptGuard::~InterruptGuard() {
  interruptible = nullptr;
  if (--num_guards == 0) install(SIG_DFL, 0);
}

}  // namespace coppice
