// Tells a person how far a run is: one live line on a terminal, one line a block in a log.
#pragma once

#include <chrono>
#include <mutex>
#include <string>

namespace coppice {

enum class Verbosity { kQuiet, kNormal, kVerbose };

/// Writes to stderr; nothing but results belongs on stdout. Any thread.
class Progress {
 public:
  explicit Progress(Verbosity verbosity);
  ~Progress();

  /// That many steps (blocks, spans) are to come; the time left is told from their pace from here.
  void expect(int steps);
  /// What is being done now; redrawn at most ten times a second on a terminal, silent in a log.
  void now(const std::string& what);
  /// A step is done. A log gets `line`; a terminal moves its live line on, and keeps `line` above
  /// it when verbose. An empty one is not written.
  void done(const std::string& line);
  /// For who asked to hear more: a line wherever it goes.
  void detail(const std::string& line);
  /// A message that must not be lost (a fallback, a warning).
  void note(const std::string& line);

 private:
  void draw(const std::string& what);
  void keep(const std::string& line);
  void clear();

  Verbosity verbosity_;
  bool terminal_;
  int total_ = 0;
  int finished_ = 0;
  std::mutex mutex_;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_draw_;
};

/// "1 h 02 min", "3 min 07 s", "4.2 s".
std::string human_seconds(double seconds);
/// "1.8 GiB", "12 MiB".
std::string human_bytes(double bytes);

}  // namespace coppice
