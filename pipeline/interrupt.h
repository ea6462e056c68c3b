// SIGINT, SIGTERM and SIGHUP as a request to finish what is at work and stop.
#pragma once

#include <stdexcept>

namespace coppice {

class BlockGraph;

/// Thrown where an interrupted command has nothing to continue from. Exit code 130.
class Interrupted : public std::runtime_error {
 public:
  Interrupted() : std::runtime_error("interrupted") {}
};

/// While it lives, the signals stop `graph`, or are only remembered for who asks requested(); a
/// second signal has its default effect. They may be nested, on one thread: an inner one adds its
/// graph, which is stopped at once if a signal came before. The outermost forgets earlier signals.
class InterruptGuard {
 public:
  InterruptGuard();
  explicit InterruptGuard(BlockGraph& graph);
  ~InterruptGuard();
  InterruptGuard(const InterruptGuard&) = delete;
  InterruptGuard& operator=(const InterruptGuard&) = delete;

  /// Whether a signal came while one lived; also behind it. Any thread.
  static bool requested();
};

}  // namespace coppice
